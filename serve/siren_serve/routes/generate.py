"""OpenAI's chat completions, generated here and guarded in the same pass."""

from typing import Any

from litestar import Request, get, post
from litestar.datastructures import State

from siren_serve.generation import ChatAnswer, ChatRequest, Generator, read_request
from siren_serve.openapi import Described

from .models import told


@post("/v1/chat/completions", status_code=200, tags=["compatible"])
async def chat(request: Request[Any, Any, Any], state: State) -> ChatAnswer:
    """Answer a conversation."""
    return ChatAnswer(state.generator, read_request(await request.body()))


@get("/v1/models", tags=["compatible"])
async def models(state: State) -> dict[str, Any]:
    """Say which model there is."""
    return {"object": "list", "data": [_told(state.generator)]}


@get("/v1/models/{name:str}", tags=["compatible"])
async def model(name: str, state: State) -> dict[str, Any]:
    """Say of the model, or of a guard beside it, that it is there and ready."""
    is_generator = name == state.generator.settings.name
    found = _told(state.generator) if is_generator else told(state.guards.get(name))
    return {**found, "name": name, "ready": True}


def _told(generator: Generator) -> dict[str, Any]:
    owner = {"object": "model", "created": 0, "owned_by": "siren"}
    return {"id": generator.settings.name, **owner}


_REFUSALS = {
    400: "No JSON, a key that stands twice, or a harmful prompt: its code is content_filter",
    413: "The body is too large, or has too many values",
    422: "It cannot be read, or asks for what is not done here: keys that could change the answer",
    429: "Too many generations wait",
    503: "The generator is being loaded, or failed",
    504: "The generation took too long",
}
DESCRIBED = {"/v1/chat/completions": Described(ChatRequest, _REFUSALS)}
ROUTES = [chat, models, model]
