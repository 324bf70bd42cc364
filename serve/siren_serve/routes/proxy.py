"""OpenAI's routes that a model server answers, with a guard in front of it."""

from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State

from siren_serve.errors import RefusedRequest
from siren_serve.messages import Message
from siren_serve.openapi import Described
from siren_serve.proxy.beside import Kind
from siren_serve.proxy.calls import read_call
from siren_serve.proxy.exchange import Exchange
from siren_serve.proxy.policy import Policy
from siren_serve.proxy.upstream import passed_headers, whole_of

AnyRequest = Request[Any, Any, Any]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ProxiedChat(msgspec.Struct, frozen=True):
    """What is read of a conversation; all of it is passed on, and every other key too."""

    messages: list[Message]
    model: str | None = None
    n: Count | None = None
    stream: bool | None = None


class ProxiedText(msgspec.Struct, frozen=True):
    """What is read of a text to go on with; all of it is passed on, and every other key too."""

    prompt: str | list[str]
    suffix: str | None = None
    model: str | None = None
    n: Count | None = None
    stream: bool | None = None


async def _exchange(kind: Kind, request: AnyRequest, state: State) -> Exchange:
    settings = state.settings
    call = read_call(kind, await request.body(), read_all=settings.proxy.read_all)
    policy = Policy(state.guards.get(None), settings.proxy, state.metrics, settings.timeout_s)
    for count, what in ((call.choices, "answers"), (call.asked, "texts")):
        if count > settings.max_texts:
            message = f"{count} {what} in one request, at most {settings.max_texts} are read"
            raise RefusedRequest(413, "too_many_texts", message)
    if policy.blocks:
        call.check_alternatives()
    return Exchange(call, list(request.scope["headers"]), state.upstream, policy, state.metrics)


@post("/v1/chat/completions", status_code=200, tags=["compatible"])
async def chat(request: AnyRequest, state: State) -> Exchange:
    """Let the upstream answer a conversation."""
    return await _exchange("chat/completions", request, state)


@post("/v1/completions", status_code=200, tags=["compatible"])
async def completions(request: AnyRequest, state: State) -> Exchange:
    """Let the upstream go on with a text."""
    return await _exchange("completions", request, state)


@get(["/v1/models", "/v1/models/{name:path}"], tags=["compatible"])
async def models(request: AnyRequest, state: State) -> Response[Any]:
    """Say which models the upstream has."""
    path = request.scope["path"].removeprefix("/v1")
    if {".", ".."} & {*path.split("/")}:  # which the upstream may take for another route's
        raise RefusedRequest(404, "not_passed_on", "a model's name has no part . or ..")
    path = quote(path)
    async with state.upstream.asked("GET", path, list(request.scope["headers"])) as response:
        body = await whole_of(response)
        headers = passed_headers(response)
    return Response(body, headers=headers, media_type="application/json")


_REFUSALS = {
    400: "No JSON, a key that stands twice, or a harmful prompt: its code is content_filter",
    413: "The body is too large, or has too many values, texts or answers",
    422: "It cannot be read or scored; with --mode block alternatives to tokens neither",
    429: "The guard has no room for more",
    502: "The upstream failed, or sent what is not understood",
    503: "The guard failed",
    504: "The upstream or the guard took too long",
}
DESCRIBED = {
    "/v1/chat/completions": Described(ProxiedChat, _REFUSALS),
    "/v1/completions": Described(ProxiedText, _REFUSALS),
}
PASSED_ON = "/v1/chat/completions, /v1/completions and /v1/models"
ROUTES = [chat, completions, models]
