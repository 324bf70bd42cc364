"""What `siren calibrate` does with an ensemble: how the mean of its members' scores decides."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from siren_runtime import Guard
from siren_runtime.bundle.ensemble import read_ensemble, write_ensemble
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.thresholds import SpanThreshold
from siren_runtime.commands.bars import Bars
from siren_runtime.errors import InputError
from siren_runtime.scoring.engines import Request
from siren_runtime.scoring.opening import open_source
from siren_runtime.text.reading import LLM_SIREN_LIMITS

from . import options
from .by_rules import ByRules
from .calibration_shown import say_windows

if TYPE_CHECKING:
    from siren_train.measure.calibrate_spans import SpanScores
    from siren_train.measure.evaluate import Scores


def calibrate_ensemble(folder: Path, rules: ByRules) -> None:
    """Choose a threshold, tiers and thresholds of spans, and write them into ensemble.json.

    Raises:
        typer.BadParameter: there is no rule, or one that needs rows without any.
        InputError: its first head has labels, the data is unusable, or no threshold meets a rule.
        BundleError, BackendError: the ensemble cannot be opened.
    """
    from siren_train.measure.decisions import with_spans

    rules.check()
    manifest = read_ensemble(folder)
    # Members with thresholds of spans score as they do in a guard with spans.
    # Of an encoder's spans all are read, so that a rate of false alarms holds wherever it is run.
    asked = Request(threads=rules.threads, streaming=bool(rules.spans), spans_graph=False)
    opened = open_source(folder, asked, verify="read", revision=None, spans=None)
    limits = dataclasses.replace(LLM_SIREN_LIMITS, long_text="windows", spans=None)
    with Guard(**vars(opened), limits=limits) as guard:
        judge = guard.judge.primary
        spans = [SpanThreshold(*one) for one in judge.spans.items()]
        old = Decision(judge.threshold, [*judge.tiers], spans=spans, responses=judge.responses)
        scores, span_scores = _scored(folder, guard, rules, old)
    new = rules.decision(old, scores, span_scores)
    # Spans that all members have stay theirs.
    kept = new if manifest.spans or rules.spans else with_spans(new, [], None)
    decided = {"threshold": kept.threshold, "tiers": kept.tiers, "spans": kept.spans}
    write_ensemble(folder, replace(manifest, **decided, responses=kept.responses))
    rules.tell(folder, old, new, scores)


def _scored(
    folder: Path, guard: Guard, rules: ByRules, old: Decision
) -> "tuple[Scores, SpanScores | None]":
    """The scores of the rows that rules are for, and of their spans where there is a rule.

    Args:
        old: how the ensemble decided so far.
    """
    from siren_train.measure.calibrate_spans import score_diluted_spans
    from siren_train.measure.evaluate import NO_ROWS, score_rows

    first = guard.manifests[0]
    if first.head.activation != "softmax":
        raise InputError(
            f"{folder}: of an ensemble heads of classes are calibrated; {first.primary!r} has "
            "labels, which have thresholds of their own in each member"
        )
    is_trajectory = first.is_trajectory
    if is_trajectory and rules.spans:
        raise InputError(f"{folder}: scores trajectories of agents, which have no spans")
    if not rules.sources:
        return NO_ROWS, None
    own = options.labels(first)
    columns = rules.columns_of(bundle_classes=own, trajectories=is_trajectory)
    with Bars() as bars:
        of_split = rules.sources, columns, rules.split
        sizes = rules.sizes(old)
        scores = score_rows(guard, *of_split, bars.update, max_rows=rules.max_rows, spans=sizes)
        span_scores = None
        if rules.spans:
            of_rows = *rules.rows_of_spans(columns), bars.update
            span_scores = score_diluted_spans(guard, *of_rows, guard.heads[0], rules.span_sizes)
    say_windows(scores, *guard.manifests)
    return scores, span_scores
