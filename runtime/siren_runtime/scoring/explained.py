"""What of a text is explained: all of it, the window of its score, or the span that decides."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from siren_runtime.backends.verdicts import HeadScore
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.errors import BackendError, InputError, SirenError
from siren_runtime.text.deadline import Deadline
from siren_runtime.text.passage import Passage, Span
from siren_runtime.text.reading import Limits, Window
from siren_runtime.text.rules import JOINER
from siren_runtime.text.spans import Cut, span_of
from siren_runtime.text.tokenizer import Tokenizer

from .scorer import Scorer, windows_of
from .text_score import text_score
from .verdict import HeadJudge, Judge, judge_of, shifted
from .windows import Scored


@dataclass(frozen=True)
class Explained:
    """What is explained of a text.

    Attributes:
        window: the tokens that are read.
        cut: the span among them that decides; None where all of them do.
        category: whose probability it is; None is harm, or of a head of labels the likeliest.
        verdict: the head's on the text.
        unknown: how much of the text is.
    """

    window: Window
    cut: Cut | None
    category: str | None
    verdict: HeadScore
    unknown: float


@dataclass(frozen=True)
class Shown:
    """The text that is explained, its token ids without special ones, and where each stands."""

    text: str
    ids: list[int]
    places: list[Span]

    def part(self, start: int, stop: int) -> "Shown":
        """Tokens `start` to `stop` by themselves."""
        places = self.places[start:stop]
        first, last = places[0][0], max(end for _, end in places)
        moved = [(begin - first, end - first) for begin, end in places]
        return Shown(self.text[first:last], self.ids[start:stop], moved)


def judge_for(manifest: Manifest, limits: Limits, spans: bool | Iterable[int] | None) -> Judge:
    """What decides on texts by one bundle.

    Args:
        spans: as `Guard.load`.

    Raises:
        InputError: `spans` are no sizes.
    """
    decisions = {name: manifest.decision(name) for name in manifest.heads}
    judge = judge_of(manifest.heads, decisions, limits)
    return replace(judge, limits=judge.limits.asking(spans, judge.span_sizes))


def column_of(scorer: Scorer, head: str, category: str | None) -> int:
    """Where a row of the readout has the probability of a category; None is that of the score.

    Raises:
        InputError: the head has no such category.
    """
    column, names = scorer.readout.columns[head], scorer.manifest.heads[head].categories
    if category is None:
        return column.score
    if category not in names:
        raise InputError(
            f"the head {head!r} has no category {category!r}; it has "
            f"{', '.join(names) or 'none beside harm'}"
        )
    return int(column.rest.start) + names.index(category)


def explained(
    scorer: Scorer,
    judge: Judge,
    head: str,
    passage: Passage,
    category: str | None,
    deadline: Deadline,
) -> Explained:
    """Read a text as a guard does, and say what of it a head's verdict, or a category, goes by.

    Raises:
        InputError: the text cannot be scored, or the head has no such category.
        BackendError: the engine failed.
        InterruptedCall: the deadline passed, or the call was cancelled.
    """
    column = column_of(scorer, head, category)
    (reading,) = scorer.encode([passage], judge.limits, deadline)
    if isinstance(reading, SirenError):
        raise reading
    scored = []
    for one in scorer.run(windows_of([reading]), check=deadline.check).values():
        if isinstance(one, BackendError):
            raise one
        scored.append(one)
    text = text_score(scorer.readout, passage, reading, scored)
    assert not isinstance(text, BackendError)  # which was raised above
    verdict = judge.on_heads(
        [text.heads],
        threshold=None,
        unknown=reading.unknown,
        has_response=passage.has_response,
        spans_asked=judge.limits.spans_asked,
    )[head]
    own = judge.heads[head].of_text(passage.has_response)
    judged = _judged(scorer, head, category) if verdict.spans else {}
    highest = reading.windows[int(np.argmax([one.row[column] for one in scored]))]
    span = _deciding_span(own, judged, reading.windows, scored)
    window, cut, category = span or (highest, None, category)
    return Explained(window, cut, category, verdict, reading.unknown)


def _judged(scorer: Scorer, head: str, category: str | None) -> dict[str, int]:
    """Where rows have what is explained and held against a threshold: the score, by "", or each
    label, by its name.
    """
    spec = scorer.manifest.heads[head]
    if spec.has_labels:
        labels = spec.categories if category is None else [category]
        return {label: column_of(scorer, head, label) for label in labels}
    return {"": column_of(scorer, head, None)} if category is None else {}


def _deciding_span(
    head: HeadJudge,
    judged: Mapping[str, int],
    windows: Sequence[Window],
    scored: Sequence[Scored],
) -> tuple[Window, Cut, str | None] | None:
    """The riskiest span, its window and its label, if its risk is higher than that of the text."""
    of_text, found = 0.0, list[tuple[float, Window, Cut, str | None]]()
    for label, column in judged.items():
        highest = max(float(one.row[column]) for one in scored)
        of_text = max(of_text, shifted(highest, head.shift(head.of_label(label))))
        found += [
            (
                head.risk_of(float(row[column]), head.of_span(cut.size, label), head.threshold),
                window,
                cut,
                label or None,
            )
            for window, one in zip(windows, scored, strict=True)
            for cut, row in zip(one.cuts, one.spans, strict=True)
        ]
    if not found:
        return None
    risk, window, cut, category = max(found, key=lambda one: (one[0], -one[2].size))
    return (window, cut, category) if risk > of_text else None


def shown(tokenizer: Tokenizer, passage: Passage, window: Window) -> Shown:
    """What a window holds of a text: all of it, or a part, which may stand behind the prompt's end,
    on a line of its own.
    """
    encoded = tokenizer.encode(passage.cleaned, special=False)
    if window.span is None:
        return Shown(passage.cleaned, encoded.ids, encoded.offsets)
    texts: list[str] = []
    ids: list[int] = []
    places: list[Span] = []
    begins = 0
    for start, stop in window.taken:
        first, last = span_of(encoded, start, stop)
        ids += encoded.ids[start:stop]
        places += [(a - first + begins, b - first + begins) for a, b in encoded.offsets[start:stop]]
        texts.append(passage.cleaned[first:last])
        begins += last - first + len(JOINER)
    return Shown(JOINER.join(texts), ids, places)
