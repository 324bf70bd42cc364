"""Harmful spans that Qwen3GuardTest gives in tokens of Qwen3, as characters of the response.

A row has `input_ids`, the conversation in Qwen3's chat template, and the indices in it of the
unsafe sentence. The response is what stands there between the assistant's header and the end of the
turn, so it includes the empty <think> block that the template writes before a plain answer. As in
the SIREN paper's code, the text at the end of the span is that of the tokens before
`unsafe_end_index`.
"""

from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from siren_runtime.bundle.hub import resolve_folder
from siren_runtime.errors import InputError

from .benchmark_rows import Adapted, last_message
from .fields import Fields

TOKENIZER_REPOSITORY = "Qwen/Qwen3-0.6B"  # every Qwen3 model has this tokenizer
_FILE = "tokenizer.json"
_HEADER, _END_OF_TURN = "<|im_start|>assistant\n", "<|im_end|>"


def load_tokenizer(downloads: Path | None) -> Tokenizer:
    """Return Qwen3's tokenizer, from a folder of downloads or from the hub.

    Raises:
        InputError: it is not there, or is no tokenizer.
    """
    source = TOKENIZER_REPOSITORY if downloads is None else downloads / TOKENIZER_REPOSITORY
    if downloads is not None and not (downloads / TOKENIZER_REPOSITORY / _FILE).is_file():
        raise InputError(
            f"{source}: no {_FILE}; the spans are in tokens of Qwen3: hf download "
            f"{TOKENIZER_REPOSITORY} {_FILE} --local-dir {source}"
        )
    path = resolve_folder(source, patterns=[_FILE], error=InputError, allow_symlinks=True) / _FILE
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise InputError(f"{path}: not a tokenizer: {error}") from None


def located(fields: Fields, tokenizer: Tokenizer) -> Adapted:
    """Return the response of a row, and the characters of it that are its first unsafe sentence.

    Raises:
        InputError: a column is missing, or the tokens do not spell the conversation.
    """
    ids = _integers(fields.get("input_ids"), "input_ids")
    start, end = _integers(
        [fields.get("unsafe_start_index"), fields.get("unsafe_end_index")],
        "unsafe_start_index and unsafe_end_index",
    )
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    header = whole.rfind(_HEADER)
    if header < 0 or _bare(last_message(fields, "user")) not in _bare(whole):
        raise InputError(
            "column 'input_ids' does not spell the conversation in 'message' with Qwen3's tokenizer"
        )
    begin = header + len(_HEADER)
    response = whole[begin:].partition(_END_OF_TURN)[0]

    def character(token: int) -> int:
        # Tokens may end within a character, which is then spelled otherwise.
        before = tokenizer.decode(ids[:token], skip_special_tokens=False)
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))
        return min(max(sum(1 for _ in equal) - begin, 0), len(response))

    first = min(character(start), max(len(response) - 1, 0))
    return {
        "response": response,
        "harm_start": first,
        "harm_end": max(character(end), first + 1),
    }


def _integers(values: Any, name: str) -> list[int]:
    if not isinstance(values, list) or not all(
        isinstance(value, int) and value >= 0 for value in values
    ):
        raise InputError(f"{name} is missing, or no index of a token")
    return values


def _bare(text: str) -> str:
    return "".join(text.split())
