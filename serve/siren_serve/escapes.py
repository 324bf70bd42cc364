r"""Texts that hold JSON as who parses them reads them: `\n` and `\uXXXX` stand for characters."""

import json
import re
from typing import Final

_ESCAPES: Final = re.compile(r"""(?:\\u[0-9a-fA-F]{4})+|\\["\\/bfnrt]""")
# All of a text but an escape at its end that more text would complete: one that has not all of its
# digits, or the first half of a pair that is one character.
_COMPLETE: Final = re.compile(
    r"""(?: [^\\]+
          | \\[^u]
          | \\u (?![dD][89abAB]) [0-9a-fA-F]{4}
          | \\u [dD][89abAB] [0-9a-fA-F]{2} (?! (?:\\(?:u[0-9a-fA-F]{0,3})?)? \Z)
          | \\u (?! [0-9a-fA-F]{0,3}\Z | [0-9a-fA-F]{4})
        )*""",
    re.VERBOSE,
)

_HALF: Final = re.compile("[\ud800-\udfff]")


class Unescaping:
    """Text that comes in pieces, cut anywhere. What is left at the end is no character."""

    def __init__(self) -> None:
        self._rest = ""

    def add(self, piece: str) -> str:
        """Return what can be read now; an escape that is not whole waits."""
        text = self._rest + piece
        found = _COMPLETE.match(text)
        end = found.end() if found else 0
        self._rest = text[end:]
        return unescaped(text[:end])


def both_ways(text: str) -> str:
    """A text that may hold JSON as it is, and behind it as who parses it reads it, if that differs.

    A model reads it as it is, and what the model calls parses it.
    """
    return "\n".join(dict.fromkeys([text, unescaped(text)]))


def unescaped(text: str) -> str:
    r"""A text whose escapes are the characters they stand for; half of a pair stays as it is."""

    def character(found: re.Match[str]) -> str:
        read: str = json.loads(f'"{found[0]}"')
        return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", read)

    return _ESCAPES.sub(character, text)
