"""Bodies of JSON in which each key of an object stands once.

Of a key that stands twice some decoders take the first value and others the last, so that who
stands behind a guard might act on a text that it did not read. KServe's clients send tensors behind
the JSON, whose length a header says; what comes before is looked at as any other body is.
"""

import json
import re
from typing import Any

from litestar import Request

from siren_runtime.text.keys import repeated

from .errors import RefusedRequest

_KSERVE = "/v2/"
_LENGTH = b"inference-header-content-length"
_WHOLE = re.compile(rb"\d{1,18}")
_LONGEST = 100  # characters of a key that an error repeats


class CheckedRequest(Request[Any, Any, Any]):
    """A request whose body is looked at before anyone decodes it."""

    _is_checked = False

    async def body(self) -> bytes:
        """The body.

        Raises:
            RefusedRequest: it is compressed, or as `parted` and `check_keys`.
        """
        body = await super().body()
        if not self._is_checked:
            coding = self.headers.get("content-encoding", "identity")
            if coding.lower() != "identity":
                message = f"a body in the content-encoding {coding!r} is not read; send it as it is"
                raise RefusedRequest(415, "content_encoding", message)
            if body:
                check_keys(parted(self.scope, body)[0])
            self._is_checked = True
        return body


def check_keys(data: bytes | str) -> None:
    """Look for keys that stand twice.

    Raises:
        RefusedRequest: one does, or it is not JSON in UTF-8.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        json.loads(text, object_pairs_hook=_checked, parse_int=len, parse_float=len)
    except (ValueError, RecursionError) as error:
        raise RefusedRequest(400, "not_json", f"the body is not JSON: {error}") from None


def _checked(pairs: list[tuple[str, Any]]) -> None:
    key = repeated(pairs)
    if key is not None:
        said = key if len(key) <= _LONGEST else key[:_LONGEST] + "…"
        raise RefusedRequest(400, "repeated_key", f"an object names the key {said!r} twice")


def json_length(scope: Any) -> int | None:
    """The bytes of a body's JSON, by its header; None where all of it is JSON.

    Raises:
        RefusedRequest: the header is no whole number, or stands twice.
    """
    given = [value for name, value in scope["headers"] if name == _LENGTH]
    if not given or not scope["path"].startswith(_KSERVE):
        return None
    if len(given) > 1 or not _WHOLE.fullmatch(given[0]):
        message = "expected Inference-Header-Content-Length once, the bytes of the JSON in digits"
        raise RefusedRequest(422, "invalid", message)
    return int(given[0])


def parted(scope: Any, body: bytes) -> tuple[bytes, bytes]:
    """A body's JSON, and the tensors behind it.

    Raises:
        RefusedRequest: as `json_length`, or the body is shorter.
    """
    length = json_length(scope)
    if length is None:
        return body, b""
    if length > len(body):
        message = f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes"
        raise RefusedRequest(422, "invalid", message)
    return body[:length], body[length:]
