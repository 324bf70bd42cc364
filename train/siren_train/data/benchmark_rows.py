"""What a row of each public benchmark says: its text, and whether that is harmful.

The rules are those of the SIREN paper's code (github.com/CSSLab/SIREN at 88d71cb, the files
train/preprocess.py, test/generalization/preprocess_think.py and
test/streaming/evaluate_streaming_siren.py). Each function takes the columns of a row, and returns
`text`, or `prompt` and `response`, with `label` (1 is harmful), or what a stream needs
(siren_train.data.streams). None leaves the row out, as that code does. InputError is raised where a
column is missing or holds what the rule does not know.
"""

from collections.abc import Callable, Mapping
from reprlib import repr as shorten
from typing import Any

from siren_runtime.errors import InputError

from .fields import Fields, required, required_string

Adapted = dict[str, Any] | None

_SAFE = {"safe": 0, "unsafe": 1}
_OPENAI_FLAGS = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
_AEGIS_VOTES = tuple(f"labels_{index}" for index in range(5))


def toxicchat(fields: Fields) -> Adapted:
    """The user's input; harmful by its `toxicity`."""
    return {**_text(fields, "user_input"), "label": _one_of(fields, "toxicity", {0: 0, 1: 1})}


def openai_moderation(fields: Fields) -> Adapted:
    """The prompt; harmful where any of the eight flags is set. An empty flag is not."""
    flags = [_one_of(fields, name, {0: 0, 1: 1, None: 0}) for name in _OPENAI_FLAGS]
    return {**_text(fields, "prompt"), "label": int(any(flags))}


def aegis(fields: Fields) -> Adapted:
    """The text; harmful where at least half of its annotators say anything other than Safe."""
    votes = [vote for name in _AEGIS_VOTES if (vote := required(fields, name)) is not None]
    if not votes:
        raise InputError(f"columns {', '.join(_AEGIS_VOTES)} are all empty")
    unsafe = sum(vote != "Safe" for vote in votes)
    return {**_text(fields, "text"), "label": int(2 * unsafe >= len(votes))}


def aegis2(fields: Fields) -> Adapted:
    """The prompt, whether or not there is a response; harmful by `prompt_label`."""
    return {**_text(fields, "prompt"), "label": _one_of(fields, "prompt_label", _SAFE)}


def wildguardmix(fields: Fields) -> Adapted:
    """The prompt; harmful by `prompt_harm_label`. Rows without one are left out."""
    label = _one_of(fields, "prompt_harm_label", {"unharmful": 0, "harmful": 1, None: None})
    return None if label is None else {**_text(fields, "prompt"), "label": label}


def saferlhf(fields: Fields) -> Adapted:
    """The prompt and the first of the two responses; harmful where that is not safe."""
    return {
        "prompt": required_string(fields, "prompt"),
        "response": required_string(fields, "response_0"),
        "label": _one_of(fields, "is_response_0_safe", {True: 0, False: 1}),
    }


def beavertails(fields: Fields) -> Adapted:
    """The prompt and its response; harmful where the pair is not safe."""
    return {
        "prompt": required_string(fields, "prompt"),
        "response": required_string(fields, "response"),
        "label": _one_of(fields, "is_safe", {True: 0, False: 1}),
    }


def thinking_of(family: str) -> Callable[[Fields], Adapted]:
    """Return the rule for what one family of models answered, reasoning included.

    The answer alone is read. Rows of other families are left out, and rows labelled neither safe
    nor unsafe.

    Args:
        family: GLM, Qwen3 or DeepSeek.
    """

    def adapt(fields: Fields) -> Adapted:
        label = _SAFE.get(required_string(fields, "label").lower())
        if label is None or _family(required_string(fields, "source")) != family:
            return None
        return {"text": last_message(fields, "assistant") or " ", "label": label}

    return adapt


def thinking_safe_stream(fields: Fields) -> Adapted:
    """A safe answer, as a stream without harm."""
    if required_string(fields, "label").lower() != "safe":
        return None
    return {"response": last_message(fields, "assistant")}


def last_message(fields: Fields, role: str) -> str:
    """Return the content of the last message of `role`, of a row whose `message` lists them.

    Raises:
        InputError: there is none, or its content is no string.
    """
    messages = required(fields, "message")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == role:
            return required_string(message, "content")
    raise InputError(f"column 'message' has no message of the {role}: {shorten(messages)}")


def _family(source: str) -> str | None:
    if source.startswith("deepseek-ai/"):
        return "DeepSeek"
    return next((family for family in ("GLM", "Qwen3") if family in source), None)


def _text(fields: Fields, name: str) -> dict[str, str]:
    """The text of a column; an empty one is scored as a space, as llm-siren scores it."""
    return {"text": required_string(fields, name) or " "}


def _one_of(fields: Fields, name: str, labels: Mapping[Any, Any]) -> Any:
    """Return what the value of a column stands for."""
    value = required(fields, name)
    for known, label in labels.items():
        if value is known or (known is not None and value == known):
            return label
    raise InputError(
        f"column {name!r} is {shorten(value)}; expected {', '.join(map(repr, labels))}"
    )
