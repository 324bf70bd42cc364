"""`siren calibrate --head NAME` for a head of labels: each label by itself."""

from collections.abc import Sequence

import typer
from msgspec.structs import replace

from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.progress import suffixed
from siren_runtime.bundle.reader import Bundle
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report, write_lines
from siren_runtime.scoring.engines import Engines, Request, open_backend
from siren_train.data.rows import Columns
from siren_train.data.sources import Source

from .calibration_shown import say_windows
from .labels_shown import say_unnamed


def calibrate_labels(
    bundle: Bundle,
    head: str,
    rule: str | None,
    temperature: bool,
    sources: Sequence[Source],
    columns: Columns,
    split: str,
    threads: int | None,
) -> Decision:
    """Choose temperatures and thresholds of a head's labels, and write them into the bundle.

    Args:
        rule: of each label's threshold; None leaves them where their verdicts are.
        temperature: whether each label gets a temperature.
        sources: labelled text; numbers need none.
    """
    from siren_train.measure.calibrate_labels import (
        find_label_thresholds,
        fit_label_temperatures,
        labels_of,
        recalibrated,
    )
    from siren_train.measure.decisions import write_decided
    from siren_train.measure.evaluate import score_rows
    from siren_train.measure.temperature import FITTING_TEMPERATURE, tempered_guard
    from siren_train.measure.threshold_rules import stated_threshold

    old = labels_of(bundle.manifest, head)
    temperatures: dict[str, float] = {}
    thresholds: dict[str, float] = {}
    if not sources:
        number = stated_threshold(rule or "")
        if number is None or temperature:
            raise typer.BadParameter("labelled text is needed for all but a number")
        thresholds = {label.name: number for label in old}
    else:
        engines = Engines(open_backend(bundle, Request(threads=threads)))
        with Bars() as bars:
            if temperature:
                hot = {label.name: FITTING_TEMPERATURE for label in old}
                guard = tempered_guard(bundle, engines, hot, head)
                scores = score_rows(guard, sources, columns, split, bars.update)
                temperatures = fit_label_temperatures(scores, head)
            if rule is not None:
                kept = {o.name: temperatures.get(o.name, o.temperature) for o in old}
                guard = tempered_guard(bundle, engines, kept, head)
                progress = suffixed(bars.update, ", tempered" if temperature else "")
                scores = score_rows(guard, sources, columns, split, progress)
                thresholds = find_label_thresholds(scores, head, rule)
        say_windows(scores, bundle.manifest)
        say_unnamed(scores, {head: [label.name for label in old]})
    new = recalibrated(old, thresholds, temperatures)
    decision = replace(bundle.manifest.decision(head), labels=new)
    written = write_decided(bundle.path, bundle.manifest, head, decision)
    for label in new:
        write_lines(
            f"{label.name}: from {label.threshold:.4f}, temperature {label.temperature:.3f}"
        )
    report(f"{bundle.path}: {len(new)} labels of {head} calibrated")
    return written.decision(head)
