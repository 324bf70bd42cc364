"""The ASGI application: routes, errors, and what lives as long as the server does."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    SerializationException,
    ValidationException,
)
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from siren_runtime import __version__
from siren_runtime.errors import SirenError

from . import logs
from .bodies import CheckedRequest
from .errors import RefusedRequest, body_at, refused, why_not_json
from .gate import Gate
from .generation import Generator
from .guards import Guards
from .keys import Keys
from .metrics import Metrics
from .openapi import document
from .proxy.upstream import Upstream, UpstreamRefusal
from .reload import load_guards, reload_all
from .routes import (
    classifiers,
    generate,
    kserve,
    litellm,
    models,
    moderations,
    operations,
    page,
    proxy,
    score,
    streams,
    trajectories,
)
from .settings import Settings
from .streams import Sessions

ENVIRONMENT = "SIREN_SERVE_SETTINGS"
_NOT_JSON = SerializationException, msgspec.DecodeError, UnicodeDecodeError, RecursionError
_log = logging.getLogger("siren_serve")

ROUTES = [
    page.page,
    score.score,
    trajectories.trajectories,
    moderations.moderations,
    classifiers.predict,
    classifiers.classify,
    litellm.guardrail,
    *kserve.ROUTES,
    *streams.ROUTES,
    *operations.ROUTES,
]


def make_app(settings: Settings) -> Gate:
    """Make the application; its guards are loaded when it starts.

    Raises:
        InputError: the file of keys, or the upstream's URL or key, cannot be used.
    """
    metrics, keys = Metrics(), Keys(settings.keys_file)
    guards = Guards(settings, metrics)
    state = State(
        {
            "settings": settings,
            "metrics": metrics,
            "api_keys": keys,
            "guards": guards,
            "sessions": Sessions(settings, guards),
        }
    )
    if settings.proxy is not None:
        state.upstream = Upstream(settings.proxy, keys)
    if settings.generate is not None:
        state.generator = Generator(settings, settings.generate, metrics)
    app = Litestar(
        [
            *ROUTES,
            *(proxy.ROUTES if settings.proxy else ()),
            *(generate.ROUTES if settings.generate else ()),
            *(() if settings.proxy or settings.generate else models.ROUTES),
        ],
        state=state,
        lifespan=[_life],
        logging_config=None,
        request_class=CheckedRequest,
        request_max_body_size=settings.max_body_bytes,
        exception_handlers={Exception: _answer_error},
        openapi_config=OpenAPIConfig(
            title="siren serve",
            version=__version__,
            path="/schema",
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        ),
    )
    described = generate.DESCRIBED if settings.generate else {}
    # Made once, before the first request: it takes longer than many scores.
    app.state.openapi = document(app, proxy.DESCRIBED if settings.proxy else described)
    return Gate(app, settings, keys, guards, metrics)


@asynccontextmanager
async def _life(app: Litestar) -> AsyncIterator[None]:
    """Load the guards before the server takes requests, and close them when it has ended."""
    state, loop = app.state, asyncio.get_running_loop()
    _handle_signals(state, loop)
    if state.settings.proxy and state.settings.proxy.fail_open:
        logs.alarm("--fail-open: text without a verdict goes through")
    try:
        await load_guards(state)
        if state.settings.generate:
            await state.generator.load()
    except SirenError as error:
        state.guards.failure = str(error)
        raise
    watching = [loop.create_task(one.watch()) for one in (state.sessions, state.guards)]
    try:
        yield
    finally:
        for task in watching:
            task.cancel()
        await state.sessions.close()
        if state.settings.proxy:
            await state.upstream.close()
        await state.guards.close()
        logs.event("ended")


def _handle_signals(state: State, loop: asyncio.AbstractEventLoop) -> None:
    """SIGTERM: not ready at once, uvicorn's end after a while; another one ends the while, but of a
    worker SIGINT alone does. SIGHUP: reload.
    """

    async def reload() -> None:
        try:
            await reload_all(state)
        except SirenError as error:
            _log.error("not reloaded, all stays as it was: %s", error)

    reloads = set[asyncio.Task[None]]()

    def hang_up() -> None:
        task = loop.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    ends = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    timer: asyncio.TimerHandle | None = None

    def end_in(delay: float, number: int) -> None:
        nonlocal timer
        if timer is not None:
            timer.cancel()  # uvicorn takes a second SIGINT for "cut off all"
        end: Any = ends[signal.Signals(number)]
        timer = loop.call_later(delay, end, number, None)

    def terminate(number: int, frame: Any) -> None:
        first, state.guards.draining = not state.guards.draining, True
        if not first and number == signal.SIGTERM and state.settings.workers > 1:
            return  # passed on by the parent, where all processes were sent one
        delay = state.settings.drain_s if first else 0
        loop.call_soon_threadsafe(end_in, delay, number)

    with suppress(ValueError, NotImplementedError):  # not in the main thread: a test's server
        for number, end in ends.items():
            if callable(end):
                signal.signal(number, terminate)
        if not hasattr(signal, "SIGHUP"):  # as on Windows
            return
        if state.settings.workers == 1:
            loop.add_signal_handler(signal.SIGHUP, hang_up)
        else:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent replaces its workers


def _answer_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    if isinstance(error, UpstreamRefusal):
        return Response(error.body, status_code=error.status, headers=error.headers)
    if isinstance(error, NotFoundException):
        refusal = _not_found(request.scope["path"], request.app.state.settings)
    else:
        refusal = _refusal(error)
    if refusal.status == 500:
        _log.error("a request failed", exc_info=error)
    request.app.state.metrics.refusals.labels(refusal.code).inc()
    return Response(
        body_at(request.scope["path"], refusal),
        status_code=refusal.status,
        headers=refusal.headers,
        media_type="application/json",
    )


def _not_found(path: str, settings: Settings) -> RefusedRequest:
    if settings.proxy:
        message = f"{path} is not passed on to the upstream, only {proxy.PASSED_ON}"
        return RefusedRequest(404, "not_passed_on", message)
    if path.startswith(("/v1/chat/", "/v1/completions")):
        options = "--upstream or --generate" if path.startswith("/v1/chat/") else "--upstream"
        message = f"{path} is answered by a server with {options}"
        return RefusedRequest(404, "not_found", message)
    return RefusedRequest(404, "not_found", "no such path; /openapi.json lists them")


def _refusal(error: Exception) -> RefusedRequest:
    if isinstance(error, ValidationException):
        where = [f"{e.get('key', '')}: {e['message']}" for e in _details(error)]
        if where == ["data: 'data'"]:  # as Litestar has it
            return RefusedRequest(400, "not_json", "the body is empty, expected JSON")
        return RefusedRequest(422, "invalid", "; ".join(where) or error.detail)
    if isinstance(error, msgspec.ValidationError):
        return RefusedRequest(422, "invalid", str(error))
    cause = error.__cause__ if isinstance(error, HTTPException) else error
    if isinstance(cause, _NOT_JSON):
        return RefusedRequest(400, "not_json", f"the body is not JSON: {why_not_json(cause)}")
    if isinstance(error, MethodNotAllowedException):
        return RefusedRequest(405, "method_not_allowed", error.detail, error.headers)
    if isinstance(error, HTTPException):
        code = "too_large" if error.status_code == 413 else "invalid"
        return RefusedRequest(error.status_code, code, error.detail, error.headers)
    return refused(error)


def _details(error: ValidationException) -> list[dict[str, Any]]:
    return [e for e in error.extra if isinstance(e, dict)] if isinstance(error.extra, list) else []


def from_environment() -> Gate:
    """Make the application of a worker, whose parent left the settings in the environment.

    Raises:
        InputError: as `make_app`.
    """
    return make_app(Settings.decode(os.environ[ENVIRONMENT]))
