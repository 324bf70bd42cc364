"""Spans: parts of what is read whose tokens' mean is scored beside the mean of all.

The mean over a text hides a harmful sentence among many plain ones; that over a span does not.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from siren_runtime.bundle.arguments import whole_number
from siren_runtime.errors import InputError

from .passage import Span
from .tokenizer import Encoded

DEFAULT_SIZES: Final = (32, 64, 128)
# Marks behind which a sentence ends where white space follows, and those that need none.
_MARKS: Final = ".!?…"
_WIDE_MARKS: Final = "。！？।؟۔"
# Where a sentence or a line ends: its marks, closing quotes and brackets, and the space behind.
# Turns are lines: a prompt and its response, and messages, are joined by newlines.
# A run of marks is looked at from its first one alone: where no space is behind it, each of them
# would read it to its end, which takes time by the square of its length.
_END: Final = re.compile(
    rf"(?<![{_MARKS}])[{_MARKS}]+[\"'”’»)\]]*\s+|[{_WIDE_MARKS}]+[”’」』）]*\s*|\n+"
)
_MARK: Final = re.compile(rf"[{_MARKS}{_WIDE_MARKS}\n]")
_LEAST: Final = 8  # tokens of a sentence that is a span by itself
_LONGEST_END: Final = 16  # characters; marks beyond that many add nothing


@dataclass(frozen=True)
class Cut:
    """A span of `size` tokens.

    Attributes:
        start, stop: of the ids of a window.
        span: its part of the cleaned text, in characters.
    """

    size: int
    start: int
    stop: int
    span: Span

    @property
    def length(self) -> int:
        """Its tokens, which a sentence by itself has fewer of than `size`."""
        return self.stop - self.start


def checked_sizes(spans: bool | Iterable[int], calibrated: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Return the sizes in tokens that a caller asks for: False is none.

    Args:
        calibrated: what True stands for; 32, 64 and 128 where that is empty.

    Raises:
        InputError: it is neither a truth value nor different whole numbers from 1.
    """
    if isinstance(spans, bool | np.bool_):
        return (calibrated or DEFAULT_SIZES) if spans else ()
    if isinstance(spans, str | bytes) or not isinstance(spans, Iterable):
        raise InputError(f"spans must be True, False or sizes in tokens, found {spans!r}")
    sizes = tuple(whole_number("a size of spans", size, 1) for size in spans)
    if not sizes or len(set(sizes)) < len(sizes):
        raise InputError(f"spans must be different sizes in tokens, found {list(sizes)}")
    return tuple(sorted(sizes))


def cuts(
    encoded: Encoded, text: str, start: int, stop: int, sizes: Sequence[int], first: int
) -> list[Cut]:
    """Cut tokens `start` to `stop` of a text into spans: in steps of half a span, and at sentences.

    Args:
        text: the cleaned one.
        first: where token `start` stands among the ids of the window.
    """
    if stop - start <= min(sizes, default=0):
        return []
    return [
        Cut(size, first + begin - start, first + end - start, span_of(encoded, begin, end))
        for size, begin, end in places(sentences(encoded, text, start, stop), sizes)
    ]


def places(starts: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """As `cuts`: the size of each span, its first token and the one behind its last, in order.

    A size that is not below the number of tokens makes no span: the whole is scored anyway.

    Args:
        starts: what `sentences` returns.
    """
    start, stop = starts[0], starts[-1]
    sizes = sorted(size for size in sizes if size < stop - start)
    if not sizes:
        return []
    found = {*_alone(starts, sizes)}
    for size in sizes:
        found.update((size, *part) for part in parts(start, stop, size, step_of(size)))
        found.update((size, *part) for part in _whole_sentences(starts, size))
    return sorted(found)


def step_of(size: int) -> int:
    """How far apart spans of a size begin that go by no sentence."""
    return max(size // 2, 1)


def may_end_a_sentence(text: str) -> bool:
    """Whether a part of a cleaned text has a mark that ends sentences or lines."""
    return _MARK.search(text) is not None


def ends_a_sentence(text: str) -> bool:
    """Whether a cleaned text, behind which white space may come, ends with a sentence or line."""
    tail = text[-_LONGEST_END:] + " "
    return any(match.end() == len(tail) for match in _END.finditer(tail))


def sentences(encoded: Encoded, text: str, start: int, stop: int) -> list[int]:
    """The tokens at which sentences and lines begin, and `stop`."""
    first, last = span_of(encoded, start, stop)
    ends = (first + match.end() for match in _END.finditer(text[first:last]))
    end, begins = next(ends, None), [start]
    for token in range(start + 1, stop):
        if end is not None and encoded.offsets[token][1] > end:
            begins.append(token)
            while end is not None and encoded.offsets[token][1] > end:
                end = next(ends, None)
    return [*begins, stop]


def _alone(starts: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Each sentence by itself, of the smallest size that holds it.

    One of under 8 tokens, or of under a quarter of a smaller size than 32, says too little, and
    there would be too many.
    """
    for begin, end in pairwise(starts):
        size = size_alone(end - begin, sizes)
        if size is not None:
            yield size, begin, end


def size_alone(length: int, sizes: Sequence[int]) -> int | None:
    """The size of which a sentence of so many tokens is a span by itself, if it is one."""
    if length < min(sizes[0] / 4, _LEAST):
        return None
    return next((size for size in sizes if size >= length), None)


def _whole_sentences(starts: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """From a sentence on, as many as fit in a span; of one that does not fit, its beginning.

    The next that a span begins with is a quarter of a span on or more, so that a text of many short
    sentences, which costs its sender nothing, has few spans.
    """
    last = None
    for number, begin in enumerate(starts[:-1]):
        if last is not None and begin - last < size // 4:
            continue
        last, following = begin, bisect_right(starts, begin + size) - 1
        end = starts[following] if following > number else begin + size
        yield begin, end


def span_of(encoded: Encoded, start: int, stop: int) -> Span:
    """The characters that tokens `start` to `stop` stand for, from the first to beyond the last."""
    offsets = encoded.offsets[start:stop]
    return offsets[0][0], max(end for _, end in offsets)


def parts(start: int, stop: int, size: int, step: int) -> Iterator[tuple[int, int]]:
    """Cover `start` to `stop` by parts of at most `size` whose starts are `step` apart; the last
    ends at `stop`.
    """
    for begin in range(start, max(stop - size, start), step):
        yield begin, begin + size
    yield max(stop - size, start), stop
