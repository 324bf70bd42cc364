"""Fields of messages and tools: of which type they are, and that no text in them stays unread."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from siren_runtime.errors import InputError

from .names import is_name

# Beside what is read may stand names and kinds, and ids, which are random words.
_NAMES: Final = ("name", "type", "index", "status", "cache_control")
_IDS: Final = ("id", "tool_call_id")
_LONGEST_ID = 128
_SHOWN = 60  # characters of a text that is refused


def only(
    value: Mapping[str, Any], known: Collection[str], where: str, names: Collection[str] = ()
) -> None:
    """Refuse text that would not be read.

    Args:
        known: the keys that are read. Names, kinds and ids may stand beside them, and what holds
            no text.
        names: that are read elsewhere, whatever they say.

    Raises:
        InputError: another key holds text, or a name or an id is a sentence.
    """
    for key, held in value.items():
        for text, _ in texts_in({} if key in known else held):
            is_id = key in _IDS and len(text) <= _LONGEST_ID and len(text.split()) <= 1
            if is_id or (key in _NAMES and (is_name(text) or text in names)):
                continue
            if key in (*_IDS, *_NAMES):
                raise InputError(
                    f"{where}.{key} says {text[:_SHOWN]!r}, which is not read: it is no name; put "
                    "it where it is read, or leave it out"
                )
            raise InputError(
                f"{where} has {key!r}, which is not read; known are "
                f"{', '.join((*known, *_IDS, *_NAMES))}"
            )


def texts_in(value: Any) -> Iterator[tuple[str, bool]]:
    """Yield every string of JSON that is not empty, and whether it is the key of an object."""
    waiting = [value]
    while waiting:  # it may nest without end
        one = waiting.pop()
        if isinstance(one, str) and one:
            yield one, False
        elif isinstance(one, Mapping):
            yield from ((key, True) for key in one if isinstance(key, str))
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one


def string(value: Any, where: str) -> str:
    """A string; an empty one for what is absent.

    Raises:
        InputError: it is of another type.
    """
    if not isinstance(value, str | None):
        raise InputError(f"{where} must be a string, found {kind_of(value)}")
    return value or ""


def object_of(value: Any, where: str) -> Mapping[str, Any]:
    """An object.

    Raises:
        InputError: it is of another type.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be an object, found {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    """What errors call the type of a value."""
    return "null" if value is None else type(value).__name__
