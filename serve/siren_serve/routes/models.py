"""`/v1/models`: the guards, as OpenAI lists models and as version 1 of KServe says what is ready.

A server with an upstream or a generator lists theirs in its place.
"""

from typing import Any

from litestar import get
from litestar.datastructures import State

from siren_serve.guards import Served


@get("/v1/models", tags=["compatible"])
async def models(state: State) -> dict[str, Any]:
    """Say which guards there are."""
    return {"object": "list", "data": [told(served) for served in state.guards.all()]}


@get("/v1/models/{name:str}", tags=["compatible"])
async def model(name: str, state: State) -> dict[str, Any]:
    """Say of one guard that it is there and ready."""
    return {**told(state.guards.get(name)), "name": name, "ready": True}


def told(served: Served) -> dict[str, Any]:
    """A guard as OpenAI lists a model."""
    created = int(served.loaded)
    return {"id": served.name, "object": "model", "created": created, "owned_by": "siren"}


ROUTES = [models, model]
