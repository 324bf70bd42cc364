"""What a request says beside its messages: tools, documents, schemas, and the like."""

from collections.abc import Iterator
from typing import Any, Literal

from siren_serve.errors import RefusedRequest
from siren_serve.messages import is_name

Kind = Literal["chat/completions", "completions"]
_READ: dict[Kind, set[str]] = {
    "chat/completions": {"messages"},
    "completions": {"prompt", "suffix"},
}
# What is for the server and not for the model.
_SETTINGS = {
    *("model", "user", "metadata", "stop", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "request_id"),
}
_NO_TEXT = {"type", "format"}  # of schemas
# A prompt in another form than text.
_UNREADABLE = "prompt_embeds", "prompt_token_ids", "input_embeds", "input_ids"


def check_readable(body: dict[str, Any]) -> None:
    """Refuse a prompt that is no text.

    Raises:
        RefusedRequest: there is one.
    """
    for key in _UNREADABLE:
        if body.get(key) is not None:
            message = f"{key}: token ids and embeddings cannot be scored"
            raise RefusedRequest(422, "cannot_be_scored", message)


def texts_beside(body: dict[str, Any], kind: Kind) -> list[str]:
    """The texts of a request but for its messages or prompt: one a tool and one a document, so that
    none hides in what the others say, and one for each other key.
    """
    items: list[Any] = []
    for key, value in body.items():
        if key not in _READ[kind] and key not in _SETTINGS:
            several = isinstance(value, list) and all(isinstance(item, dict) for item in value)
            items += value if several else [value]
    return [text for item in items if not is_name(text := "\n".join(_strings(item)))]


def _strings(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, str):
        if not (key in _NO_TEXT and is_name(value)):
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            if not is_name(name):
                yield name
            yield from _strings(item, name)
