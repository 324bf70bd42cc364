"""OpenAI's chat completions, generated here and guarded in the same pass."""

from typing import Any

from litestar import Request, get, post
from litestar.datastructures import State
from litestar.types import ASGIApp

from siren_serve.generation import ChatAnswer, Generator, read_request

from .models import told


@post("/v1/chat/completions", status_code=200, include_in_schema=False)
async def chat(request: Request[Any, Any, Any], state: State) -> ASGIApp:
    """Answer a conversation."""
    return ChatAnswer(state.generator, read_request(await request.body()))


@get("/v1/models", include_in_schema=False)
async def models(state: State) -> dict[str, Any]:
    """Say which model there is."""
    return {"object": "list", "data": [_told(state.generator)]}


@get("/v1/models/{name:str}", include_in_schema=False)
async def model(name: str, state: State) -> dict[str, Any]:
    """Say of the model, or of a guard beside it, that it is there and ready."""
    is_generator = name == state.generator.settings.name
    found = _told(state.generator) if is_generator else told(state.guards.get(name))
    return {**found, "name": name, "ready": True}


def _told(generator: Generator) -> dict[str, Any]:
    owner = {"object": "model", "created": 0, "owned_by": "siren"}
    return {"id": generator.settings.name, **owner}


ROUTES = [chat, models, model]
