"""What `siren calibrate` does with an ensemble: how the mean of its members' scores decides."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from siren_runtime import Guard
from siren_runtime.bundle.ensemble import read_ensemble, write_ensemble
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.thresholds import SpanThreshold
from siren_runtime.commands.bars import Bars
from siren_runtime.errors import InputError
from siren_runtime.text.reading import AS_LLM_SIREN

from . import options
from .by_rules import ByRules

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
    rules.check()
    manifest = read_ensemble(folder)
    by_stream = bool(rules.spans or manifest.spans)  # as a guard with spans scores
    read = {"threads": rules.threads, "streaming": by_stream, "exits": False, **AS_LLM_SIREN}
    with Guard.load(folder, **read) as guard:
        scores, span_scores = _scored(folder, guard, rules, manifest.spans)
        judge = guard.judge.primary
    responses = manifest.responses or (judge.responses and replace(judge.responses, spans=[]))
    old = Decision(judge.threshold, list(judge.tiers), spans=manifest.spans, responses=responses)
    new = rules.decision(old, scores, span_scores)
    decided = {"threshold": new.threshold, "tiers": new.tiers, "spans": new.spans}
    write_ensemble(folder, replace(manifest, **decided, responses=new.responses))
    rules.tell(folder, old, new, scores)


def _scored(
    folder: Path, guard: Guard, rules: ByRules, spans: Sequence[SpanThreshold]
) -> "tuple[Scores, SpanScores | None]":
    """The scores of the rows that rules are for, and of their spans where there is a rule.

    Args:
        spans: that the ensemble has; tiers go by them too.
    """
    from siren_train.data.reading import sampled
    from siren_train.data.rows import read_all
    from siren_train.measure.calibrate_spans import score_diluted_spans
    from siren_train.measure.evaluate import NO_ROWS, score_rows

    first = guard.manifests[0]
    if first.head.activation != "softmax":
        raise InputError(
            f"{folder}: of an ensemble heads of classes are calibrated; {first.primary!r} has "
            "labels, which have thresholds of their own in each member"
        )
    is_trajectory = first.task == "trajectory"
    if is_trajectory and rules.spans:
        raise InputError(f"{folder}: scores trajectories of agents, which have no spans")
    if not rules.sources:
        return NO_ROWS, None
    columns = rules.columns_of(options.labels(first), trajectories=is_trajectory)
    with Bars() as bars:
        of_split = rules.sources, columns, rules.split
        sizes = rules.sizes(spans)
        scores = score_rows(guard, *of_split, bars.update, max_rows=rules.max_rows, spans=sizes)
        if not rules.spans:
            return scores, None
        labelled = [row for row in read_all(rules.sources, columns) if row.split == rules.split]
        of_rows = sampled(labelled, rules.max_rows), labelled, rules.diluted
        return scores, score_diluted_spans(guard, *of_rows, bars.update, guard.heads[0])
