"""How many keys, strings and other values a body of JSON has, told before it is decoded.

Decoding makes an object of each, during which nobody else is served: 2 MiB of short messages, or of
empty lists, take a hundred times as long as 2 MiB of text.
"""

from .errors import RefusedRequest

_MOST = 32_768


class Values:
    """Those of a body that comes in parts, cut anywhere.

    Attributes:
        strings: that have begun, keys among them.
        marks: commas and opening brackets outside strings, about one for each value.
    """

    def __init__(self, length: int | None = None) -> None:
        """Count none yet.

        Args:
            length: bytes of the body that are JSON; None are all.
        """
        self._left = length
        self.strings = self.marks = 0
        self._is_outside = True
        self._rest = b""  # a backslash that ends a part, and belongs to what comes next

    def add(self, data: bytes) -> None:
        """Count those of a part.

        Raises:
            RefusedRequest: there are too many by now.
        """
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        data, self._rest = self._rest + data, b""
        if (len(data) - len(data.rstrip(b"\\"))) % 2:
            data, self._rest = data[:-1], b"\\"
        # Without what is escaped, quotes are where strings begin and end.
        parts = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        for part in parts[0 if self._is_outside else 1 :: 2]:
            self.marks += part.count(b",") + part.count(b"[") + part.count(b"{")
        quotes = len(parts) - 1
        self.strings += (quotes + self._is_outside) // 2
        self._is_outside ^= bool(quotes % 2)
        if self.strings > _MOST or self.marks > _MOST:
            what = "keys and strings" if self.strings > _MOST else "values"
            raise RefusedRequest(413, "too_many_values", f"the body has more than {_MOST:,} {what}")
