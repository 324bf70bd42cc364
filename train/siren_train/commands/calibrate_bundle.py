"""What `siren calibrate` does with a head of classes of a bundle, by rules."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.progress import suffixed
from siren_runtime.bundle.reader import Bundle
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import write_lines
from siren_runtime.errors import InputError
from siren_runtime.scoring.engines import Request, open_engines
from siren_train.data.rows import Columns

from .by_rules import ByRules
from .calibration_shown import say_windows

if TYPE_CHECKING:
    from siren_train.measure.calibrate_spans import SpanScores
    from siren_train.measure.evaluate import Scores


def calibrate_bundle(
    bundle: Bundle,
    head: str,
    temperature: bool,
    columns: Columns,
    rules: ByRules,
    record: Path | None,
) -> None:
    """Choose thresholds, tiers and a temperature of a head, and write them into guard.json.

    Args:
        temperature: whether to fit one.
        record: the folder of the head itself, where they are kept too; None is no such folder.

    Raises:
        typer.BadParameter: there are no rows, and something needs them.
        InputError: a temperature is asked for and the head has not two classes, the data is
            unusable, or no threshold meets a rule.
        BundleError, BackendError: the bundle cannot be opened.
    """
    from siren_train.measure.decisions import write_decided
    from siren_train.measure.evaluate import NO_ROWS

    old = kept = bundle.manifest.decision(head)
    scores, span_scores = NO_ROWS, None
    if rules.sources:
        kept, scores, span_scores = _scored(bundle, head, temperature, columns, rules)
    elif temperature:
        raise typer.BadParameter("labelled text is needed to fit a temperature")
    rules.check_stated()
    new = rules.decision(kept, scores, span_scores)
    write_decided(bundle.path, bundle.manifest, head, new)
    rules.tell(bundle.path, old, new, scores, record)
    if temperature:
        write_lines(f"temperature: {new.temperature:.3f}")


def _scored(
    bundle: Bundle, head: str, temperature: bool, columns: Columns, rules: ByRules
) -> "tuple[Decision, Scores, SpanScores | None]":
    """How the head decides at its temperature, which may be new; the scores of the rows at that,
    and of their spans where there is a rule.
    """
    from siren_train.measure.calibrate_spans import score_diluted_spans
    from siren_train.measure.decisions import tempered
    from siren_train.measure.evaluate import score_rows
    from siren_train.measure.temperature import FITTING_TEMPERATURE, fit_temperature, tempered_guard

    spec, decision = bundle.manifest.heads[head], bundle.manifest.decision(head)
    if temperature and spec.activation == "softmax" and spec.classes != 2:
        raise InputError(f"{bundle.path}: temperature scaling is for heads of two classes")
    by_stream = bool(rules.spans or decision.spans)  # as a guard with spans scores
    # Of an encoder's spans all are read, so that a rate of false alarms holds wherever it is run.
    asked = Request(threads=rules.threads, streaming=by_stream, spans_graph=False)
    engines = open_engines(bundle, asked)
    score = partial(
        score_rows,
        sources=rules.sources,
        columns=columns,
        split=rules.split,
        head=head,
        max_rows=rules.max_rows,
    )
    with Bars() as bars:
        if temperature:
            progress = suffixed(bars.update, " for the temperature")
            guard = tempered_guard(bundle, engines, FITTING_TEMPERATURE, head)
            decision = tempered(decision, fit_temperature(score(guard, progress=progress)))
        guard = tempered_guard(bundle, engines, decision.temperature, head)
        scores = score(guard, progress=bars.update, spans=rules.sizes(decision))
        span_scores = None
        if rules.spans:
            of_rows = *rules.rows_of_spans(columns), bars.update
            span_scores = score_diluted_spans(guard, *of_rows, head, rules.span_sizes)
    say_windows(scores, bundle.manifest)
    return decision, scores, span_scores
