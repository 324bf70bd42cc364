"""What a request says beside its messages: tools, documents, schemas, and the like."""

from collections.abc import Iterator
from typing import Any, Literal

from siren_runtime.text.names import is_name
from siren_serve.errors import RefusedRequest

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
UNREADABLE = {"prompt_embeds", "prompt_token_ids", "input_embeds", "input_ids"}
# What stands beside the messages and is the client's, as they are: it is always read.
ALWAYS_READ = {"prediction", "chat_template_kwargs"}
# Prompts of other routes and servers, which some servers put beside or in place of the one read.
PROMPTS_ELSEWHERE = {
    *("messages", "prompt", "suffix", "input", "inputs", "system", "system_prompt", "instructions"),
    *("extra_body", "chat_template", "prompt_variables", "response_prefix", "tool_prompt"),
}


def check_readable(body: dict[str, Any], kind: Kind, *, read_all: bool = False) -> None:
    """Refuse a prompt that is no text, and one under a key that is not read.

    Args:
        read_all: all keys are read.

    Raises:
        RefusedRequest: there is one.
    """
    merged = body.get("extra_body")  # LiteLLM's, into the body
    for given in (body, merged if isinstance(merged, dict) else {}):
        for key, value in given.items():
            if value is not None and key.casefold() in UNREADABLE:
                message = f"{key}: token ids and embeddings cannot be scored"
                raise RefusedRequest(422, "cannot_be_scored", message)
    for key, value in body.items():
        if value and key.casefold() in PROMPTS_ELSEWHERE - _READ[kind] and not read_all:
            message = f"{key} is not read of /v1/{kind} unless all keys are (--read-all)"
            raise RefusedRequest(422, "cannot_be_scored", message)


def texts_beside(body: dict[str, Any], kind: Kind, *, read_all: bool) -> list[str]:
    """The texts of a request but for its messages or prompt: one a tool and one a document, so that
    none hides in what the others say, and one for each other key.

    Args:
        read_all: of all keys, and not only of those that are always read.
    """
    items: list[Any] = []
    for key, value in body.items():
        if key.casefold() in ALWAYS_READ or (read_all and key not in _READ[kind] | _SETTINGS):
            several = isinstance(value, list) and all(isinstance(item, dict) for item in value)
            items += value if several else [value]
    return [text for item in items if not is_name(text := "\n".join(_strings(item)))]


def declared_names(body: dict[str, Any]) -> list[str]:
    """The names of a request's tools."""
    lists = [body.get("tools"), body.get("functions")]
    tools = [tool for given in lists if isinstance(given, list) for tool in given]
    parts = [*tools]
    for tool in tools:
        parts += [tool.get("function"), tool.get("custom")] if isinstance(tool, dict) else []
    names = [part.get("name") for part in parts if isinstance(part, dict)]
    return [name for name in names if isinstance(name, str)]


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
