"""Server-sent events as a stream of bytes has them, cut anywhere."""

import re
from typing import NamedTuple

from siren_serve.errors import RefusedRequest

# https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"
_LARGEST = 8 << 20  # bytes of an event


class Event(NamedTuple):
    """What an upstream sends at once; without a name it is a message."""

    name: bytes
    data: bytes


class EventDecoder:
    """Bytes in, each whole event out. Comments and other fields are left out."""

    def __init__(self) -> None:
        self._head = b""  # before the first event, while it may be a byte order mark
        self._rest: list[bytes] = []  # of a line that is not whole
        self._name, self._lines = b"", list[bytes]()
        self._size = self._waiting = 0
        self._begun = self._after_return = False

    def feed(self, data: bytes) -> list[Event]:
        """Add bytes; return the events that end in them.

        Raises:
            RefusedRequest: an event is larger than 8 MiB.
        """
        if self._after_return and data:  # which ended a line already
            data = data.removeprefix(b"\n")
            self._after_return = False
        if not self._begun:
            data = self._head = self._head + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                return []
            self._begun, data = True, data.removeprefix(_BOM)
        if data:
            self._after_return = data.endswith(b"\r")
        first, *lines = _LINE_END.split(data)
        self._rest.append(first)
        self._waiting += len(first)
        found = []
        for line in lines:  # each begins where the one before has ended
            event = self._line(b"".join(self._rest))
            found += [event] if event is not None else []
            self._rest, self._waiting = [line], len(line)
        if self._size + self._waiting > _LARGEST:
            raise RefusedRequest(502, "upstream_failed", "an event of the upstream is too large")
        return found

    def _line(self, line: bytes) -> Event | None:
        """Take a line in; the event, if it is the empty one that ends it."""
        if not line:
            name, lines = self._name, self._lines
            self._name, self._lines, self._size = b"", [], 0
            return Event(name, b"\n".join(lines)) if lines else None
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._lines.append(value)
            self._size += len(value)
        elif field == b"event":
            self._name = value
        return None
