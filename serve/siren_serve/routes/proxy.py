"""OpenAI's routes that a model server answers, with a guard in front of it."""

from typing import Any
from urllib.parse import quote

from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.types import ASGIApp

from siren_serve.errors import RefusedRequest
from siren_serve.proxy.beside import Kind
from siren_serve.proxy.calls import read_call
from siren_serve.proxy.exchange import Exchange
from siren_serve.proxy.policy import Policy
from siren_serve.proxy.upstream import passed_headers, whole_of

AnyRequest = Request[Any, Any, Any]


async def _exchange(kind: Kind, request: AnyRequest, state: State) -> ASGIApp:
    settings = state.settings
    call = read_call(kind, await request.body(), read_all=settings.proxy.read_all)
    policy = Policy(state.guards.get(None), settings.proxy, state.metrics, settings.timeout_s)
    for count, what in ((call.choices, "answers"), (len(call.prompts), "texts")):
        if count > settings.max_texts:
            message = f"{count} {what} in one request, at most {settings.max_texts} are read"
            raise RefusedRequest(413, "too_many_texts", message)
    if policy.blocks:
        call.check_alternatives()
    return Exchange(call, list(request.scope["headers"]), state.upstream, policy, state.metrics)


@post("/v1/chat/completions", status_code=200, include_in_schema=False)
async def chat(request: AnyRequest, state: State) -> ASGIApp:
    """Let the upstream answer a conversation."""
    return await _exchange("chat/completions", request, state)


@post("/v1/completions", status_code=200, include_in_schema=False)
async def completions(request: AnyRequest, state: State) -> ASGIApp:
    """Let the upstream go on with a text."""
    return await _exchange("completions", request, state)


@get(["/v1/models", "/v1/models/{name:path}"], include_in_schema=False)
async def models(request: AnyRequest, state: State) -> Response[bytes]:
    """Say which models the upstream has."""
    path = request.scope["path"].removeprefix("/v1")
    if {".", ".."} & {*path.split("/")}:  # which the upstream may take for another route's
        raise RefusedRequest(404, "not_passed_on", "a model's name has no part . or ..")
    path = quote(path)
    async with state.upstream.asked("GET", path, list(request.scope["headers"])) as response:
        body = await whole_of(response)
        headers = passed_headers(response)
    return Response(body, headers=headers, media_type="application/json")


PASSED_ON = "/v1/chat/completions, /v1/completions and /v1/models"
ROUTES = [chat, completions, models]
