"""A conversation as the model's chat template writes it, and what could forge one."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from siren_runtime.bundle.files import ReadFailures
from siren_runtime.errors import BackendError, BundleError, InputError

from .failures import GenaiFailures

Message = Mapping[str, str]

# A template's own message stands in front of it, the template's source behind.
_IN_TEMPLATE = re.compile(r" at row \d+, column \d+:\n")
_ESCAPED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)  # as JSON has it
_SHORT_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_BEHIND_NUL = "U+0000, behind which onnxruntime-genai reads nothing; remove it"
_EXAMPLE = [{"role": role, "content": "."} for role in ("user", "assistant", "user")]
_File = TypeVar("_File", bound=msgspec.Struct)


class _Token(msgspec.Struct, frozen=True):
    content: str
    special: bool = False


class _Tokenizer(msgspec.Struct, frozen=True):
    """tokenizer.json."""

    added_tokens: tuple[_Token, ...] = ()


class _Config(msgspec.Struct, frozen=True):
    """tokenizer_config.json."""

    added_tokens_decoder: dict[str, _Token] = {}


def chat_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The text of messages by the model's chat template, up to where the response begins.

    Args:
        tokenizer: onnxruntime-genai's.

    Raises:
        BackendError: the model has no chat template, or none that onnxruntime-genai can read.
        InputError: it refuses the messages, or one holds a NUL, in whichever of its fields.
    """
    for number, message in enumerate(messages):
        if any("\0" in text for text in _texts(message)):
            raise InputError(f"messages[{number}] holds {_BEHIND_NUL}")
    given = msgspec.json.encode(list(messages)).decode()
    try:
        with GenaiFailures("the model's chat template cannot be used"):
            text: str = tokenizer.apply_chat_template(given, add_generation_prompt=True)
    except BackendError as error:
        said, *source = _IN_TEMPLATE.split(str(error.__cause__), maxsplit=1)
        if not source:
            raise
        raise InputError(f"the model's chat template refuses the messages: {said}") from error
    return text


def control_tokens(folder: Path, tokenizer: Any) -> tuple[str, ...]:
    """The texts that would begin or end turns of a chat, where a message held them.

    onnxruntime-genai makes one token of each text that is added to the vocabulary, wherever it
    stands. Special ones are control tokens, and so are others by which the chat template marks
    turns: DeepSeek's `<｜User｜>` is not special.

    Args:
        folder: of the model.
        tokenizer: onnxruntime-genai's.

    Raises:
        BundleError: a file of the tokenizer cannot be read.
    """
    try:
        example = chat_text(tokenizer, _EXAMPLE)
    except (BackendError, InputError):  # no template, or one of other conversations
        example = ""
    added = (
        *_read(folder / "tokenizer.json", _Tokenizer).added_tokens,
        *_read(folder / "tokenizer_config.json", _Config).added_tokens_decoder.values(),
    )
    found = (t.content for t in added if t.special or t.content in example)
    return tuple(dict.fromkeys(text for text in found if text.strip()))


def check_control(what: str, said: str | Message, control: Sequence[str]) -> None:
    """Refuse what could end its turn and begin another, such as one of the system.

    Args:
        what: it is, for errors.
        said: a text, or a message with all that a chat template may write of it.
        control: the texts of control tokens.

    Raises:
        InputError: it holds one.
    """
    texts = _texts(said)
    for text in control:
        if any(text in one for one in texts):
            raise InputError(
                f"{what} holds {text!r}, which the model takes for a control token, so that it "
                "could end its turn and begin another; write it otherwise"
            )


def check_no_nul(text: str) -> None:
    """Refuse a text of which onnxruntime-genai reads a part: it ends strings at a NUL.

    Raises:
        InputError: it holds one.
    """
    if "\0" in text:
        raise InputError(f"character {text.index(chr(0))} of the text is {_BEHIND_NUL}")


def _texts(said: str | Message) -> list[str]:
    """What a chat template may write of a text or of a message, to look for texts in.

    Of a message that is its content and, as JSON without escapes, the rest. Without those of the
    strings in it too: onnxruntime-genai decodes the arguments of tool calls for some templates.
    """
    if isinstance(said, str):
        return [said]
    rest = {name: value for name, value in said.items() if name != "content"}
    written = _unescaped(msgspec.json.encode(rest).decode())
    return [said["content"], written, _unescaped(written)]


def _unescaped(text: str) -> str:
    found = _ESCAPED.sub(
        lambda one: chr(int(one[1], 16)) if one[1] else _SHORT_ESCAPES.get(one[2], one[2]), text
    )
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read(path: Path, kind: type[_File]) -> _File:
    """What a file says; one that is not there says nothing."""
    if not path.exists():
        return kind()
    with ReadFailures(path):
        data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: none that a tokenizer has: {error}") from None
