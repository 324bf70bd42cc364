"""The model server: requests to it, and its failures in our words."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

import httpx
import msgspec

from siren_runtime.errors import InputError
from siren_runtime.text.names import is_name
from siren_serve.errors import RefusedRequest, body_of
from siren_serve.keys import Keys
from siren_serve.settings import ProxySettings

_CONNECT_S = 10.0
_LARGEST = 32 << 20  # bytes of an answer that is no stream
_LONGEST_TEXT = 1000  # characters of what an error says
_ASKED = (
    b"idempotency-key", b"openai-organization", b"openai-project", b"traceparent", b"x-request-id"
)  # fmt: skip
_SAID = "message", "type", "code", "param"  # of an error
_ANSWERED = ("retry-after", "x-request-id")
_ANSWERED_PREFIXES = ("openai-", "x-ratelimit-")


class UpstreamRefusal(Exception):
    """The upstream's own error.

    Attributes:
        status: 400 to 499.
        headers: those that are passed on.
        error: what the upstream says of it, under OpenAI's keys.
    """

    def __init__(self, status: int, headers: dict[str, str], error: dict[str, Any]) -> None:
        super().__init__(status)
        self.status, self.headers, self.error = status, headers, error

    @property
    def text(self) -> str:
        """What may be a model's words of it: a line each."""
        return "\n".join(v for k, v in self.error.items() if _is_text(k, v))

    def without_text(self) -> "UpstreamRefusal":
        """The same error, in our words."""
        kept = {k: v for k, v in self.error.items() if not _is_text(k, v)}
        return UpstreamRefusal(self.status, self.headers, kept)

    @property
    def body(self) -> dict[str, Any]:
        """Its JSON, in which we say what the upstream does not."""
        message = f"the upstream refused the request with status {self.status}"
        own = body_of(RefusedRequest(self.status, "upstream_refused", message)).error
        return {"error": msgspec.to_builtins(own) | self.error}

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled with all that it is made of."""
        return type(self), (self.status, self.headers, self.error), self.__dict__


class Upstream:
    """The model server behind a proxy."""

    def __init__(self, settings: ProxySettings, keys: Keys) -> None:
        """Read the key.

        Raises:
            InputError: the URL or the file of the key cannot be used.
        """
        self._keys, self._key = keys, _key_of(settings.key_file)
        try:
            base = httpx.URL(settings.upstream)
        except httpx.InvalidURL as error:
            raise InputError(f"--upstream {settings.upstream!r}: {error}") from None
        if base.scheme not in ("http", "https") or not base.host:
            raise InputError(
                f"--upstream {settings.upstream!r}: expected a URL such as http://localhost:8001/v1"
            )
        self._client = httpx.AsyncClient(
            base_url=base,
            # It keeps none: those of one caller's answer are not another's.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx.Timeout(settings.timeout_s, connect=min(settings.timeout_s, _CONNECT_S)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    @asynccontextmanager
    async def asked(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: dict[str, Any] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """Ask, and give the answer while it comes; leaving early ends the request.

        Args:
            headers: those that our caller sent.

        Raises:
            UpstreamRefusal: a status of 400 to 499.
            RefusedRequest: the upstream fails, or takes too long, now or while it is read.
        """
        content = None if body is None else msgspec.json.encode(body)
        try:
            request = self._client.build_request(
                method, path, headers=self._headers(headers, content), content=content
            )
            response = await self._client.send(request, stream=True)
            try:
                await _check(response)
                yield response
            finally:
                await response.aclose()
        except httpx.TimeoutException as error:
            message = f"the upstream did not answer in time: {type(error).__name__}"
            raise RefusedRequest(504, "upstream_timeout", message) from error
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            message = f"the upstream failed: {type(error).__name__}"
            raise RefusedRequest(502, "upstream_failed", message) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _headers(
        self, given: list[tuple[bytes, bytes]], content: bytes | None
    ) -> dict[bytes, bytes]:
        """Those that are sent on: few, and never a key of this server."""
        asked = dict(given)
        headers = {name: asked[name] for name in _ASKED if name in asked}
        headers |= {b"accept-encoding": b"identity"}
        if content is not None:
            headers[b"content-type"] = b"application/json"
        own = [(name, value) for name, value in given if name == b"authorization"]
        if self._key is not None:
            headers[b"authorization"] = f"Bearer {self._key}".encode()
        elif own and not (self._keys.are_asked_for and self._keys.open(own)):
            headers[b"authorization"] = asked[b"authorization"]
        return headers


async def whole_of(response: httpx.Response) -> bytes:
    """The body of an answer that is no stream.

    Raises:
        RefusedRequest: it is larger than 32 MiB.
    """
    found = b""
    async for data in response.aiter_bytes():
        found += data
        if len(found) > _LARGEST:
            raise RefusedRequest(502, "upstream_failed", "the upstream's answer is too large")
    return found


def passed_headers(response: httpx.Response) -> dict[str, str]:
    """The headers of an answer that are passed on, a character each byte, as ASGI has them."""
    headers = {
        name.decode("latin-1").lower(): value.decode("latin-1")
        for name, value in response.headers.raw
    }
    return {
        name: value
        for name, value in headers.items()
        if name in _ANSWERED or name.startswith(_ANSWERED_PREFIXES)
    }


async def _check(response: httpx.Response) -> None:
    status = response.status_code
    if 400 <= status < 500:
        error = _error_in(await whole_of(response))
        raise UpstreamRefusal(status, passed_headers(response), error)
    if status != 200:
        raise RefusedRequest(
            502, "upstream_failed", f"the upstream answered with status {status}",
            passed_headers(response),
        )  # fmt: skip


def _error_in(body: bytes) -> dict[str, Any]:
    """What an error in OpenAI's form says, or in SGLang's, which has the same keys one level up; of
    another body nothing. Other keys may hold an answer, such as Groq's `failed_generation`.
    """
    try:
        decoded = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    error = decoded.get("error", decoded)
    found = {key: error.get(key) for key in _SAID} if isinstance(error, dict) else {}
    texts = {k: v[:_LONGEST_TEXT] for k, v in found.items() if isinstance(v, str) and v}
    return texts | {k: v for k, v in found.items() if isinstance(v, int)}


def _is_text(key: str, value: Any) -> bool:
    return isinstance(value, str) and (key == "message" or not is_name(value))


def _key_of(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the upstream's key: {error}") from None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{path}: expected the upstream's key alone, in one line")
    return key
