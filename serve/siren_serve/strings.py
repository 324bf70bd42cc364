"""How many keys and strings a body of JSON has, told before it is decoded.

Decoding makes an object of each, during which nobody else is served: 2 MiB of short messages take a
hundred times as long as 2 MiB of text.
"""

from .errors import RefusedRequest

_MOST = 32_768


class Strings:
    """Those of a body that comes in parts."""

    def __init__(self) -> None:
        self._quotes = 0

    def add(self, data: bytes) -> None:
        """Count those of a part, by the quotes that are not escaped.

        Raises:
            RefusedRequest: there are too many by now.
        """
        self._quotes += data.count(b'"') - data.count(b'\\"')
        if self._quotes > 2 * _MOST:
            message = f"the body has more than {_MOST:,} keys and strings"
            raise RefusedRequest(413, "too_many_strings", message)
