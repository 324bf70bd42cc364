"""A JSON array that arrives line by line, and its elements as each is complete."""

import json
import re
from typing import Any, Final

_BLANKS: Final = " \t\r\n"  # of JSON
_OPENING = re.compile(rf"[{_BLANKS}]*\[[{_BLANKS}]*")
_EMPTY = re.compile(rf"[{_BLANKS}]*\[[{_BLANKS}]*\][{_BLANKS}]*")
_BETWEEN = re.compile(rf"[{_BLANKS}]*")
_DELIMITER = re.compile(rf"[{_BLANKS}]*([,\]])")


class GrowingArray:
    """An array of which nothing is held but the element that is not complete.

    Attributes:
        given: how many elements it gave so far.
        rest: the text behind the last of them; while there is none, all.
        problem: why `rest` is nothing that an array may go on with; None while it is.
    """

    def __init__(self, decoder: json.JSONDecoder, longest: int) -> None:
        """Begin with no text.

        Args:
            decoder: of the elements.
            longest: characters of an element that is not complete; more are a problem.
        """
        self.given, self.rest = 0, ""
        self.problem: str | None = None
        self._decoder, self._longest = decoder, longest
        self._is_closed = False

    def add(self, lines: str) -> list[Any]:
        """Take whole lines in, and return the elements that are complete with them."""
        self.rest += lines
        elements, place = [], 0
        while not self._is_closed and (found := self._element(place)) is not None:
            element, place = found
            elements.append(element)
            self.given += 1
        self.rest = self.rest[place:]
        if self._is_closed and self.rest.strip(_BLANKS):
            self.problem = "more stands behind its end"
        elif self.problem is None and len(self.rest) > self._longest:
            self.problem = f"an element is longer than {self._longest} characters"
        return elements

    def end(self) -> None:
        """See whether it is complete now that no more comes."""
        if not self._is_closed and _EMPTY.fullmatch(self.rest) is None:
            self.problem = self.problem or "its end is missing"

    def _element(self, place: int) -> tuple[Any, int] | None:
        """The element behind a place of `rest`, and the place behind its comma or the array's end;
        None where not all of it has come, or there is a problem.
        """
        before = (_BETWEEN if self.given else _OPENING).match(self.rest, place)
        if before is None:
            self.problem = "not JSON: Expecting '['"
            return None
        if before.end() == len(self.rest) or (not self.given and _EMPTY.fullmatch(self.rest)):
            return None
        try:
            element, end = self._decoder.raw_decode(self.rest, before.end())
        except json.JSONDecodeError as error:
            if error.pos < len(self.rest):
                self.problem = f"not JSON: {error.msg}"
            return None
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, or deep nesting
            self.problem = f"not JSON: {error}"
            return None
        delimiter = _DELIMITER.match(self.rest, end)
        if delimiter is None:
            if self.rest[end:].strip(_BLANKS):
                self.problem = "not JSON: Expecting ',' delimiter"
            return None
        self._is_closed = delimiter[1] == "]"
        return element, delimiter.end()
