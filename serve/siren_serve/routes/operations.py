"""What operators ask: is it up, what is it, what does it do, take the new bundle."""

import os
from importlib import metadata
from typing import Any

from litestar import Response, get, post
from litestar.datastructures import State
from litestar.openapi import ResponseSpec

from siren_runtime import __version__
from siren_runtime.errors import SirenError
from siren_serve.errors import RefusedRequest
from siren_serve.reload import reload_all
from siren_serve.settings import Settings


@get("/health/live", tags=["operations"])
async def live() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "live"}


@get("/health/ready", tags=["operations"])
async def ready(state: State) -> dict[str, str]:
    """Whether all guards have scored something, and the server is not about to end."""
    state.guards.check_ready()
    return {"status": "ready"}


@get("/info", tags=["operations"])
async def info(state: State) -> dict[str, Any]:
    """Say which bundles these are, by their hashes, what runs them, and which bounds were set."""
    settings = state.settings
    names = ("numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "litestar", "uvicorn")
    bounds = [field for field in settings.__struct_fields__ if field.startswith("max_")]
    return {
        "version": __version__,
        "versions": {name: found for name in names if (found := _version(name))},
        "process": os.getpid(),
        "workers": settings.workers,
        "threads": settings.threads,
        "runs": settings.runs,
        "bounds": {name: getattr(settings, name) for name in bounds},
        "upstream": _upstream(settings),
        "generator": state.generator.info() if settings.generate else None,
        "guards": {served.name: served.info() for served in state.guards.all()},
    }


def _upstream(settings: Settings) -> dict[str, Any] | None:
    """How answers of the upstream are treated; where it is stays with the operator."""
    if settings.proxy is None:
        return None
    hidden = "upstream", "key_file"
    shown = [name for name in settings.proxy.__struct_fields__ if name not in hidden]
    return {name: getattr(settings.proxy, name) for name in shown}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@get("/metrics", tags=["operations"], media_type="text/plain; version=0.0.4")
async def metrics(state: State) -> bytes:
    """Tell Prometheus what was counted."""
    for served in state.guards.all():
        served.measure()
    text: bytes = state.metrics.text()
    return text


@get("/openapi.json", include_in_schema=False, media_type="application/json")
async def openapi(state: State) -> bytes:
    """Describe every route as OpenAPI does."""
    document: bytes = state.openapi
    return document


_LATER = ResponseSpec(
    dict[str, Any],
    description="With several workers: their parent replaces them, and what fails is in its log",
    generate_examples=False,
)


@post("/admin/reload", status_code=200, responses={202: _LATER}, tags=["operations"])
async def reload(state: State) -> Response[dict[str, Any]]:
    """Load all bundles and keys anew, and let them take over; no request is lost.

    It needs a key, so that a server without keys is reloaded by SIGHUP alone. With several workers
    it is done by their parent, one after the other, and the answer is 202.
    """
    if not state.api_keys.are_asked_for:
        raise RefusedRequest(
            403, "no_keys", "without --api-key-file nobody may reload over HTTP; send SIGHUP"
        )
    try:
        done = await reload_all(state)
    except SirenError as error:
        raise RefusedRequest(409, "not_reloaded", f"all stays as it was: {error}") from error
    return Response({"reloaded": state.guards.names()}, status_code=200 if done else 202)


ROUTES = [live, ready, info, metrics, openapi, reload]
