"""What `siren calibrate` does with a grafted generator: thresholds and tiers by its own pass."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from siren_runtime import GuardedGenerator
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report
from siren_runtime.errors import InputError
from siren_train.data.rows import Columns
from siren_train.data.sources import Source

from . import options
from .calibration_shown import described, finish, print_decision


def calibrate_generator(
    folder: Path,
    head: str | None,
    threshold: str | None,
    tiers: Mapping[str, str],
    sources: Sequence[Source],
    columns: Callable[..., Columns],
    split: str,
    max_rows: int | None,
    responses: bool,
    threads: int | None,
) -> None:
    """Choose a threshold and tiers of a head on the rows of a split, and write them.

    Args:
        head: None is the primary one.
        threshold, tiers: rules, as `siren_train.measure.calibrate.find_threshold` takes them;
            numbers where there are no sources.
        columns: makes the columns, of names of classes.
        responses: whether to choose by the rows with a response, and apart from that by the rest.

    Raises:
        typer.BadParameter: there is no rule, or one that needs rows without any.
        InputError: the head has labels or is not there, the data is unusable, or no threshold
            meets a rule.
        BundleError, BackendError: the folder cannot be opened.
    """
    from siren_train.measure.calibrate import with_thresholds
    from siren_train.measure.calibrate_responses import find
    from siren_train.measure.evaluate import NO_ROWS
    from siren_train.measure.generator import score_with_generator, write_graft_decision

    options.check_rules(threshold, tiers, has_rows=bool(sources), responses=responses)
    generator = GuardedGenerator.load(folder, threads=threads)
    heads = generator.manifest.heads
    name = next(iter(heads)) if head is None else head
    if name not in heads or heads[name].activation != "softmax":
        told = [name for name, spec in heads.items() if spec.activation == "softmax"]
        raise InputError(
            f"{folder}: of a generator heads of classes are calibrated, here {told}; found {name!r}"
        )
    scores = NO_ROWS
    if sources:
        with Bars() as bars:
            rest = sources, columns(Columns().classes), split, max_rows, bars.update
            scores, refusals = score_with_generator(generator, name, *rest)
        if refusals:
            report(f"{len(refusals)} rows were left out, the first since {refusals[0]}")
    found = find(scores, threshold, tiers, by_response=responses)
    old = generator.manifest.decision(name)
    new = with_thresholds(old, found.threshold, found.tiers, found.responses)
    write_graft_decision(folder, name, new)
    if sources:
        print_decision(new, scores, split)
    else:
        report(f"{folder}: {described(new)}")
    finish(None, old, new)
