"""The OpenAPI document: what Litestar finds of the routes, and what it cannot know of them.

A route that a model answers reads its body itself and writes its answer as it comes, so that
neither stands in its signature. The form of errors is this server's own, and not Litestar's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Litestar
from msgspec import UNSET, UnsetType

from .errors import ErrorBody


class Verdict(msgspec.Struct, frozen=True):
    """The guard's verdict on a text, as far as it has one and is to tell it.

    `prompt` is the verdict on the prompt, `failed_open` the code of the error for which there is
    none.
    """

    score: float | UnsetType = UNSET
    is_harmful: bool | UnsetType | None = UNSET
    threshold: float | UnsetType = UNSET
    tokens: int | UnsetType = UNSET
    tier: str | UnsetType = UNSET
    risk: float | UnsetType = UNSET
    spans: list[dict[str, Any]] | UnsetType = UNSET
    categories: dict[str, float] | UnsetType = UNSET
    flagged: list[str] | UnsetType = UNSET
    heads: dict[str, Any] | UnsetType = UNSET
    prompt: "Verdict | UnsetType" = UNSET
    failed_open: str | UnsetType = UNSET


class Choice(msgspec.Struct, frozen=True):
    """One answer: a `message`, or the `text` that goes on with a prompt.

    One that the guard cut has the `finish_reason` content_filter.
    """

    index: int
    message: dict[str, Any] | UnsetType = UNSET
    text: str | UnsetType = UNSET
    finish_reason: str | UnsetType | None = UNSET
    siren: Verdict | UnsetType = UNSET


class Completion(msgspec.Struct, frozen=True):
    """What a model answers.

    `moderation` has the verdicts in OpenAI's form, where the request asks for them.
    """

    choices: list[Choice]
    id: str | UnsetType = UNSET
    object: str | UnsetType = UNSET
    created: int | UnsetType = UNSET
    model: str | UnsetType = UNSET
    usage: dict[str, Any] | UnsetType | None = UNSET
    moderation: dict[str, Any] | UnsetType = UNSET
    siren: Verdict | UnsetType = UNSET


@dataclass(frozen=True)
class Described:
    """A route that a model answers with a completion.

    Attributes:
        asked: what is read of the body; other keys may stand beside it.
        refusals: status -> when a request gets it.
    """

    asked: type
    refusals: Mapping[int, str]


_EVENTS = (
    "The answer. With `stream` it comes as events, of which each has as its data such an object "
    "with `delta` in the place of `message`; the last one is [DONE]. What has no verdict ends them "
    "with an event of `error`"
)
_KSERVE_ERROR = {
    "type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]
}  # fmt: skip
_NAMED = "#/components/schemas/{name}"


def document(app: Litestar, described: Mapping[str, Described]) -> bytes:
    """The document of an application as JSON.

    Args:
        described: path -> what is not in the signature of its route.
    """
    found = app.openapi_schema.to_schema()
    kinds: list[type] = [ErrorBody]
    for route in described.values():
        kinds += [route.asked, Completion]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_NAMED)
    components = found.setdefault("components", {}).setdefault("schemas", {})
    components |= {name: schema for name, schema in schemas.items() if name not in components}
    for path, item in found["paths"].items():
        form = _json(_KSERVE_ERROR) if path.startswith("/v2") else _of(ErrorBody)
        for operation in item.values():
            operation["responses"].pop("400", None)  # in Litestar's form
            operation["responses"]["default"] = {"description": "An error", "content": form}
    for path, route in described.items():
        _describe(found["paths"][path]["post"], route)
    return msgspec.json.encode(found)


def _describe(operation: dict[str, Any], route: Described) -> None:
    """Write into an operation what it is asked and how it answers."""
    operation["requestBody"] = {"required": True, "content": _of(route.asked)}
    forms = {**_of(Completion), "text/event-stream": {}}  # some take a schema for one event's
    operation["responses"]["200"] = {"description": _EVENTS, "content": forms}
    for status, when in route.refusals.items():
        refusal = {"description": when, "content": _of(ErrorBody)}
        operation["responses"][str(status)] = refusal


def _of(kind: type) -> dict[str, Any]:
    return _json({"$ref": _NAMED.format(name=kind.__name__)})


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
