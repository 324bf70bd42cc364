"""API keys: read from a file, compared in constant time."""

import binascii
import hashlib
import hmac
from base64 import urlsafe_b64decode
from contextlib import suppress
from pathlib import Path

from siren_runtime.errors import InputError

_SHORTEST = 16
_PROTOCOL = b"siren.key."  # and the key in URL-safe base64


class Keys:
    """The keys that open a server; without a file it is open."""

    def __init__(self, path: Path | None) -> None:
        """Read the file.

        Raises:
            InputError: it cannot be read, holds no key, or one of under 16 characters.
        """
        self._path = path
        self._digests = self.read()

    @property
    def are_asked_for(self) -> bool:
        """Whether a request needs a key."""
        return self._path is not None

    def take(self, digests: list[bytes]) -> None:
        """Let other keys open the server, as `read` gives them."""
        self._digests = digests

    def read(self) -> list[bytes]:
        """What the file holds now, as `take` has it.

        Raises:
            InputError: as for a new one.
        """
        if self._path is None:
            return []
        try:
            lines = self._path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self._path}: cannot read API keys: {error}") from None
        keys = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
        if not keys or min(map(len, keys)) < _SHORTEST:
            raise InputError(
                f"{self._path}: expected API keys of {_SHORTEST} characters or more, one a line; "
                f"found {len(keys)}, the shortest of {min(map(len, keys), default=0)}"
            )
        return [_digest(key.encode()) for key in keys]

    def open(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether `Authorization: Bearer`, `X-API-Key` or a protocol that is offered is a key."""
        if self._path is None:
            return True
        given = []
        for name, value in headers:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                given.append(value[7:].strip())
            elif name == b"x-api-key":
                given.append(value.strip())
            elif name == b"sec-websocket-protocol":
                given += _of_protocols(value)
        # All are compared, so that the time does not tell which comes near.
        digests = [_digest(key) for key in given]
        return sum(hmac.compare_digest(d, key) for d in digests for key in self._digests) > 0


def _of_protocols(value: bytes) -> list[bytes]:
    """Keys among the protocols that a browser offers, which lets a page set no other header."""
    names = [name.strip() for name in value.split(b",")]
    coded = [n.removeprefix(_PROTOCOL) for n in names if n.startswith(_PROTOCOL)]
    with suppress(binascii.Error):
        return [urlsafe_b64decode(key + b"=" * (-len(key) % 4)) for key in coded]
    return []


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
