"""From the windows of a text to what each head makes of it: of every number the highest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from siren_runtime.backends.outputs import FloatArray
from siren_runtime.backends.readout import Column, HeadText, HighestSpan, Readout
from siren_runtime.errors import BackendError
from siren_runtime.text.passage import Passage, Span
from siren_runtime.text.reading import Reading

from .call import Given
from .windows import Scored


@dataclass(frozen=True)
class TextScore:
    """What the engine makes of a text.

    Attributes:
        heads: by name, the primary one first.
        features: of the window that the primary head scores the highest.
        exit: the blocks that were run of that window, where an exit decided.
        tokens, truncated, unknown, omitted, unread: as `siren_runtime.text.reading.Reading` has
            them.
        has_response: as `siren_runtime.text.passage.Passage` has it; trajectories have none.
    """

    heads: Mapping[str, HeadText]
    features: FloatArray
    tokens: int
    truncated: bool
    unknown: float
    exit: int | None = None
    omitted: Span | None = None
    unread: tuple[str, ...] = ()
    has_response: bool = False


def text_score(
    readout: Readout, given: Given, reading: Reading, scored: Sequence[Scored | BackendError]
) -> TextScore | BackendError:
    """The highest of a text's windows; one that cannot be scored leaves no verdict on the text."""
    good = []
    for one in scored:
        if isinstance(one, BackendError):
            return one
        good.append(one)
    rows = np.stack([one.row for one in good])
    highest = rows.argmax(axis=0)
    return TextScore(
        heads={
            name: _head_text(readout, name, column, given, reading, good, rows)
            for name, column in readout.columns.items()
        },
        features=good[highest[0]].features,
        tokens=reading.tokens,
        truncated=reading.truncated,
        unknown=reading.unknown,
        exit=good[highest[0]].exit,
        omitted=reading.omitted,
        unread=reading.unread,
        has_response=isinstance(given, Passage) and given.has_response,
    )


def _head_text(
    readout: Readout,
    name: str,
    column: Column,
    given: Given,
    reading: Reading,
    scored: Sequence[Scored],
    rows: FloatArray,
) -> HeadText:
    best = int(rows[:, column.score].argmax())
    orders = readout.orders(name, rows.max(axis=0))
    of_orders = rows[:, column.rest].argmax(axis=0).tolist() if orders else []
    places = {n: _in_given(given, reading.windows[n].span) for n in {best, *of_orders}}
    return HeadText(
        score=float(rows[best, column.score]),
        span=places[best],
        categories=readout.categories(name, rows.max(axis=0)),
        spans=_highest_spans(readout, name, given, reading, scored),
        orders=orders,
        order_spans=tuple(places[window] for window in of_orders),
    )


def _highest_spans(
    readout: Readout, name: str, given: Given, reading: Reading, scored: Sequence[Scored]
) -> tuple[HighestSpan, ...]:
    """Those of all windows, where they stand in the text as given."""
    if not isinstance(given, Passage):
        return ()
    spans = [of_window for one in scored for of_window in zip(one.cuts, one.spans, strict=True)]
    return tuple(
        replace(found, span=given.span_in_given(found.span))
        for found in readout.highest_spans(name, spans)
    )


def _in_given(given: Given, span: Span | None) -> Span | None:
    """Where a part stands in a text as given; a trajectory is read as a whole."""
    return given.span_in_given(span) if span is not None and isinstance(given, Passage) else None
