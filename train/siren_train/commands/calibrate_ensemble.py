"""What `siren calibrate` does with an ensemble: threshold and tiers of the mean of its scores."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from siren_runtime import Guard
from siren_runtime.bundle.ensemble import read_ensemble, write_ensemble
from siren_runtime.bundle.heads import Decision
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_train.data.rows import Columns
from siren_train.data.sources import Source

from . import options
from .calibration_shown import described, finish, print_decision


def calibrate_ensemble(
    folder: Path,
    threshold: str | None,
    tiers: Mapping[str, str],
    sources: Sequence[Source],
    columns: Callable[..., Columns],
    split: str,
    max_rows: int | None,
    responses: bool,
    threads: int | None,
) -> None:
    """Choose a threshold and tiers on the rows of a split, and write them into ensemble.json.

    Args:
        threshold, tiers: rules, as `siren_train.measure.calibrate.find_threshold` takes them;
            numbers where there are no sources.
        columns: makes the columns, of the names of the members' classes.
        responses: whether to choose by the rows with a response, and apart from that by the rest.

    Raises:
        typer.BadParameter: there is no rule, or one that needs rows without any.
        InputError: the data is unusable, or no threshold meets a rule.
        BundleError, BackendError: the ensemble cannot be opened.
    """
    from siren_train.measure.calibrate import with_thresholds
    from siren_train.measure.calibrate_responses import find
    from siren_train.measure.evaluate import NO_ROWS, score_rows

    options.check_rules(threshold, tiers, has_rows=bool(sources), responses=responses)
    scores, manifest = NO_ROWS, read_ensemble(folder)
    with Guard.load(folder, threads=threads, exits=False, **AS_LLM_SIREN) as guard, Bars() as bars:
        if sources:
            first = guard.manifests[0]
            read = columns(options.labels(first), trajectories=first.task == "trajectory")
            scores = score_rows(guard, sources, read, split, bars.update, max_rows=max_rows)
        judge = guard.judge.primary
    old = Decision(judge.threshold, list(judge.tiers), responses=judge.responses)
    found = find(scores, threshold, tiers, by_response=responses)
    new = with_thresholds(old, found.threshold, found.tiers, found.responses)
    kept = new.responses and replace(new.responses, spans=[])
    decided = replace(manifest, threshold=new.threshold, tiers=new.tiers, responses=kept)
    write_ensemble(folder, decided)
    if sources:
        print_decision(new, scores, split)
    else:
        report(f"{folder}: {described(new)}")
    finish(None, old, new)
