"""Bodies of JSON in which each key of an object stands once.

Of a key that stands twice some decoders take the first value and others the last, so that who
stands behind a guard might act on a text that it did not read.
"""

import json
from typing import Any

from litestar import Request

from siren_runtime.text.keys import repeated

from .errors import RefusedRequest

_KSERVE = "/v2/"
_BINARY = b"inference-header-content-length"  # of KServe: text, as it is, behind the JSON
_LONGEST = 100  # characters of a key that an error repeats


class CheckedRequest(Request[Any, Any, Any]):
    """A request whose body is looked at before anyone decodes it."""

    _is_checked = False

    async def body(self) -> bytes:
        """The body.

        Raises:
            RefusedRequest: it is compressed, or as `check_keys`.
        """
        body = await super().body()
        if not self._is_checked:
            coding = self.headers.get("content-encoding", "identity")
            if coding.lower() != "identity":
                message = f"a body in the content-encoding {coding!r} is not read; send it as it is"
                raise RefusedRequest(415, "content_encoding", message)
            if body and not has_binary(self.scope):
                check_keys(body)
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


def has_binary(scope: Any) -> bool:
    """Whether text may follow the JSON of a request, which its route then looks at by itself."""
    return scope["path"].startswith(_KSERVE) and any(n == _BINARY for n, _ in scope["headers"])
