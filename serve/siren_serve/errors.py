"""Errors as JSON of one shape, and which status each has.

The shape is OpenAI's, so that its client shows the message:
`{"error": {"message", "type", "code", "param"}}`. KServe's routes have the message alone, as that
protocol says.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from siren_runtime.errors import BackendError, BusyError, InputError, InterruptedCall, SirenError


class RefusedRequest(Exception):
    """A request that gets no answer but an error."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled with all that it is made of."""
        return type(self), (self.status, self.code, str(self)), self.__dict__


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every response that is no success."""

    error: ErrorDetail


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_SERVERS = "server_error"


def refused(error: Exception) -> RefusedRequest:
    """The refusal that an error of scoring comes to."""
    if isinstance(error, RefusedRequest):
        return error
    message = str(error)
    if isinstance(error, BusyError):
        wait = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
        return RefusedRequest(429, "busy", message, wait)
    if isinstance(error, InputError):
        return RefusedRequest(422, "cannot_be_scored", message)
    if isinstance(error, InterruptedCall):
        return RefusedRequest(504, "timeout", message)
    if isinstance(error, BackendError):
        return RefusedRequest(503, "engine_failed", message, {"Retry-After": "1"})
    if isinstance(error, SirenError):
        return RefusedRequest(503, "guard_failed", message)
    return RefusedRequest(500, "internal", "the server failed; its log says how")


def why_not_json(error: Exception) -> str:
    """What a decoder says, which calls half of a surrogate pair the end of the data."""
    if "truncated" not in str(error):
        return str(error)
    return f"{error}; or half of a surrogate pair stands in it, an escape from \\ud800 to \\udfff"


def body_of(error: RefusedRequest) -> ErrorBody:
    """The JSON of a refusal."""
    kind = _TYPES.get(error.status, _TYPES[400] if error.status < 500 else _SERVERS)
    return ErrorBody(ErrorDetail(str(error), kind, error.code))


def body_at(path: str, error: RefusedRequest) -> Any:
    """The body of a refusal as clients of a path know it: KServe's, below /v2, take a string."""
    return {"error": str(error)} if path == "/v2" or path.startswith("/v2/") else body_of(error)


def raw_response(error: RefusedRequest, path: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of a refusal, for those who answer without a framework."""
    body = msgspec.json.encode(body_at(path, error))
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= {name.lower(): value for name, value in error.headers.items()}
    return [(name.encode(), value.encode()) for name, value in headers.items()], body
