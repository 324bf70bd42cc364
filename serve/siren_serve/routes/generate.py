"""OpenAI's chat completions, generated here and guarded in the same pass."""

from typing import Any

from litestar import Request, get, post
from litestar.datastructures import State
from litestar.types import ASGIApp

from siren_serve.generation import ChatAnswer, read_request


@post("/v1/chat/completions", status_code=200, include_in_schema=False)
async def chat(request: Request[Any, Any, Any], state: State) -> ASGIApp:
    """Answer a conversation."""
    return ChatAnswer(state.generator, read_request(await request.body()))


@get("/v1/models", include_in_schema=False)
async def models(state: State) -> dict[str, Any]:
    """Say which model there is."""
    model = {"id": state.generator.settings.name, "object": "model", "owned_by": "siren"}
    return {"object": "list", "data": [{**model, "created": 0}]}


ROUTES = [chat, models]
