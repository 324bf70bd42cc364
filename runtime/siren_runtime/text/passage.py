"""A text to score: what was given, what is tokenized of it, and how places in the two agree."""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from siren_runtime.errors import InputError

from .rules import SUBSTITUTIONS, clean, join, one_text

Span = tuple[int, int]  # characters, from the first to beyond the last


@dataclass(frozen=True)
class Passage:
    """One text, or a prompt and its response.

    Attributes:
        given: the text as given; prompt and response joined by a newline.
        cleaned: what is tokenized.
        boundary: characters of `cleaned` up to which it is the prompt; None where there is none.
        has_response: whether a response was given, with its prompt or alone.
    """

    given: str
    cleaned: str
    boundary: int | None = None
    has_response: bool = False

    def span_in_given(self, span: Span) -> Span:
        """Where a part of `cleaned` stands in `given`."""
        start, end = span
        return int(self._in_given[start]), int(self._in_given[end - 1]) + 1

    @cached_property
    def _in_given(self) -> np.ndarray:
        return _places(self.given)


def make_passage(
    text: str | None,
    prompt: str | None = None,
    response: str | None = None,
    *,
    max_bytes: int,
) -> Passage:
    """Clean the one text that a caller means: `text`, or `prompt` and `response` joined.

    Args:
        max_bytes: of UTF-8 that it may have.

    Raises:
        InputError: none is given, `text` comes with a part, one is not a string or holds a lone
            surrogate, or the text is too large; that is looked at before anything else is.
    """
    given = one_text(text, prompt, response)
    check_size(given, max_bytes)
    cleaned = clean(given)
    boundary = None
    if prompt and response:
        boundary = min(len(clean(join(prompt, None)).strip()), len(cleaned))
    return Passage(given, cleaned, boundary, bool(response))


def check_size(text: str, max_bytes: int) -> None:
    """Refuse a text of more bytes of UTF-8 than are read.

    Raises:
        InputError: it has more.
    """
    # A character takes one byte at least, so most texts need no encoding to be measured.
    size = len(text)
    if size <= max_bytes < 4 * size:
        size = len(text.encode("utf-8", "surrogatepass"))
    if size > max_bytes:
        raise InputError(
            f"the text has {size:,} bytes or more, at most {max_bytes:,} are read; split it, or "
            "raise the bound (max_bytes_per_text, --max-bytes)"
        )


def _places(text: str) -> np.ndarray:
    """For each character of `clean(text)`, its place in `text`, int64 [characters]."""
    places = np.arange(len(text))
    for pattern, replacement in SUBSTITUTIONS:
        text, places = _substituted(pattern, replacement, text, places)
    stripped = text.strip()
    start = text.index(stripped) if stripped else 0
    places = places[start : start + len(stripped)]
    return places if len(places) else np.zeros(1, np.int64)


def _substituted(
    pattern: re.Pattern[str], replacement: str, text: str, places: np.ndarray
) -> tuple[str, np.ndarray]:
    """`pattern.sub(replacement, text)`, and the places of the characters of what it gives.

    A replacement, which is never longer, stands where the beginning of what it replaces stood.
    """
    matches = (match for match in pattern.finditer(text) if match.group() != replacement)
    ends = np.fromiter((end for match in matches for end in match.span()), np.int64).reshape(-1, 2)
    if not len(ends):
        return text, places
    left_out = np.zeros(len(text) + 1, np.int8)  # where it begins, 1; where it ends, -1
    left_out[ends[:, 0] + len(replacement)] += 1
    left_out[ends[:, 1]] -= 1
    kept = np.cumsum(left_out[:-1], dtype=np.int8) == 0
    return pattern.sub(replacement, text), places[kept]
