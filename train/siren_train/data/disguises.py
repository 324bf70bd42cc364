"""Disguises of a text: what people do to letters and spaces so that a filter misses the words."""

import random
from collections.abc import Callable

_SHARES = (0.3, 0.6, 1.0)  # of the words that are changed, each as likely
_SHORTEST = 3  # letters of a word that is changed
_DIGITS = str.maketrans("aeiostAEIOST", "431057431057")
_BETWEEN_LETTERS = (" ", " ", ".", "-", "_", "*")
_BETWEEN_WORDS = ("🙂", "😂", "🔥", "❤️", "...", "~", "*", "|", "#", "_")


def disguised(text: str, kind: str, draw: random.Random) -> str:
    """Return `text` with some or all of its words changed, by one of `KINDS`.

    Args:
        draw: chooses which words, and how each is changed.
    """
    words = text.split()
    share = draw.choice(_SHARES)
    if kind in _BETWEEN:
        return _strewn(words, _BETWEEN[kind](draw), share, draw)
    change = _OF_A_WORD[kind]
    mark = draw.choice(_BETWEEN_LETTERS)
    changed = [
        change(word, mark, draw) if len(word) >= _SHORTEST and draw.random() < share else word
        for word in words
    ]
    return " ".join(changed)


def _strewn(words: list[str], between: str, share: float, draw: random.Random) -> str:
    parts = words[:1]
    for word in words[1:]:
        parts += [between if draw.random() < share else " ", word]
    return "".join(parts)


def _swapped(word: str, mark: str, draw: random.Random) -> str:
    at = draw.randrange(len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _missing(word: str, mark: str, draw: random.Random) -> str:
    at = draw.randrange(1, len(word))
    return word[:at] + word[at + 1 :]


def _masked(word: str, mark: str, draw: random.Random) -> str:
    at = draw.randrange(1, len(word))
    return word[:at] + "*" + word[at + 1 :]


def _spelled(word: str, mark: str, draw: random.Random) -> str:
    return mark.join(word)


def _digits(word: str, mark: str, draw: random.Random) -> str:
    return word.translate(_DIGITS)


_OF_A_WORD: dict[str, Callable[[str, str, random.Random], str]] = {
    "swapped": _swapped,
    "missing": _missing,
    "masked": _masked,
    "spelled": _spelled,
    "digits": _digits,
}
# What stands between words instead of a space.
_BETWEEN: dict[str, Callable[[random.Random], str]] = {
    "together": lambda draw: "",
    "strewn": lambda draw: f" {draw.choice(_BETWEEN_WORDS)} ",
}
KINDS = (*_OF_A_WORD, *_BETWEEN)
