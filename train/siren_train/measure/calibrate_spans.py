"""Thresholds of spans from held-out rows: the highest of many scores is higher by chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from siren_runtime import Guard
from siren_runtime.backends.verdicts import SpanScore
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.bundle.thresholds import SpanThreshold
from siren_runtime.errors import InputError
from siren_runtime.text.spans import DEFAULT_SIZES
from siren_train.data.chunks import chunks_told
from siren_train.data.dilution import Dilution
from siren_train.data.rows import Row

from .evaluate import highest_spans
from .threshold_rules import parse_rule, stated_threshold


@dataclass(frozen=True, eq=False)
class SpanScores:
    """The highest span of each size, of each row.

    Attributes:
        scores: float64 [rows, sizes]; 0 where a row is not longer than the size.
        harmful: bool [rows], by the labels.
        has_response: bool [rows], which texts have one.
        sizes: in tokens, ascending.
    """

    scores: NDArray[np.float64]
    harmful: NDArray[np.bool_]
    has_response: NDArray[np.bool_]
    sizes: Sequence[int] = DEFAULT_SIZES

    def of(self, rows: NDArray[np.bool_]) -> "SpanScores":
        """Those of some rows, bool [rows]."""
        return replace(
            self,
            scores=self.scores[rows],
            harmful=self.harmful[rows],
            has_response=self.has_response[rows],
        )


def score_spans(
    guard: Guard,
    rows: Sequence[Row],
    progress: Progress = silent,
    *,
    head: str | None = None,
    sizes: Sequence[int] = DEFAULT_SIZES,
) -> SpanScores:
    """Score the spans of rows.

    Args:
        head: whose scores are taken; None is the primary one.

    Raises:
        SirenError: as `Guard.score_batch`.
    """
    found: list[Sequence[SpanScore]] = []
    lengths = [row.length() for row in rows]
    for chunk in chunks_told(rows, 64, lengths, "scoring spans", progress):
        texts = [row.given for row in chunk]
        results = guard.score_batch(texts, long_text="windows", spans=sizes)
        found += [result.heads[head or guard.heads[0]].spans for result in results]
    harmful, has_response = zip(*((row.label == 1, row.has_response) for row in rows), strict=True)
    return SpanScores(highest_spans(found, sizes), np.array(harmful), np.array(has_response), sizes)


def score_diluted_spans(
    guard: Guard,
    rows: Sequence[Row],
    among: Sequence[Row],
    lengths: Sequence[int],
    progress: Progress,
    head: str,
    sizes: Sequence[int] = DEFAULT_SIZES,
) -> SpanScores:
    """Score the spans of rows alone, and behind so many tokens of the safe ones `among` others.

    Raises:
        InputError: as `Dilution.of`.
        SirenError: as `Guard.score_batch`.
    """
    tokenizer = guard.scorers[0].tokenizer
    behind = [row for n in lengths for row in Dilution(tokenizer, n, "behind").of(rows, among)]
    return score_spans(guard, [*rows, *behind], progress, head=head, sizes=sizes)


def unseen_sizes(scores: SpanScores) -> list[int]:
    """The sizes that no safe row has a span of, so that such spans do not count by `fpr`."""
    safe = scores.scores[~scores.harmful]
    return [size for size, of in zip(scores.sizes, safe.T, strict=True) if not of.any()]


def check_rules(threshold: str | None, tiers: Mapping[str, str], spans: str | None) -> None:
    """Refuse rules that are none, before any row is scored.

    Raises:
        InputError: as `find_threshold` of threshold and tiers, as `find_span_thresholds` of spans.
    """
    for rule in (threshold, *tiers.values()):
        if rule is not None:
            parse_rule(rule)
    if spans is not None:
        _span_rule(spans)


def _span_rule(rule: str) -> tuple[str, float]:
    kind, _, value = rule.rpartition(":")
    rate = stated_threshold(value)
    if rate is None or (kind != "fpr" and rule != value):
        raise InputError(
            f"{rule!r} is no rule for spans; expected fpr:RATE or a number, from 0 to 1"
        )
    return kind, rate


def find_span_thresholds(scores: SpanScores, rule: str) -> list[SpanThreshold]:
    """Return the threshold of each size that a rule asks for.

    Args:
        rule: "fpr:RATE", by which at most that share of the safe rows has a span at its threshold
            or above, every size being as strict as the others; or a number for all sizes.

    Raises:
        InputError: the rule is neither, or no threshold meets it.
    """
    kind, rate = _span_rule(rule)
    if not kind:
        return [SpanThreshold(size, rate) for size in scores.sizes]
    safe = scores.scores[~scores.harmful]
    if not len(safe):
        raise InputError("none of the rows is safe, and a threshold for spans is chosen by such")
    allowed = int(rate * len(safe))
    # Of each row the place among the safe ones, 0 the highest, by the size that makes it highest.
    ranks = np.min([_ranks(of_size) for of_size in safe.T], axis=0)
    last = len(safe) - 1
    strictest = min(int(np.sort(ranks)[allowed]), last) if allowed <= last else last
    return [
        SpanThreshold(size, _above(np.sort(of_size)[::-1][strictest], of_size, size))
        for size, of_size in zip(scores.sizes, safe.T, strict=True)
    ]


def _ranks(of_size: NDArray[np.float64]) -> NDArray[np.int_]:
    """The place of each row by its score, 0 the highest; behind all where it has no such span."""
    ranks = np.argsort(np.argsort(-of_size))
    ranks[of_size == 0.0] = len(of_size)
    return ranks


def _above(score: float, safe: NDArray[np.float64], size: int) -> float:
    """A threshold between the score of a safe row and the next higher one.

    Where fewer rows than may be flagged have such spans, it is above all of them; where none has,
    it is 1.
    """
    if score == 0.0:
        score = safe.max(initial=0.0) or 1.0
        return float((score + 1) / 2)
    if score >= 1.0:
        raise InputError(
            f"no threshold for spans of {size} tokens flags so few of the {len(safe)} safe rows: "
            f"{int((safe >= 1.0).sum())} of them score 1; scale the temperature, or allow more"
        )
    return float((score + safe[safe > score].min(initial=1.0)) / 2)
