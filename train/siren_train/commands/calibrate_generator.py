"""What `siren calibrate` does with a grafted generator: thresholds and tiers by its own pass."""

from pathlib import Path

from siren_runtime import GuardedGenerator
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report
from siren_runtime.errors import InputError
from siren_train.data.rows import Columns

from .by_rules import ByRules


def calibrate_generator(folder: Path, head: str | None, rules: ByRules) -> None:
    """Choose a threshold and tiers of a head on the rows of a split, and write them.

    Args:
        head: None is the primary one.

    Raises:
        typer.BadParameter: there is no rule, or one that needs rows without any.
        InputError: the head has labels or is not there, the data is unusable, or no threshold
            meets a rule.
        BundleError, BackendError: the folder cannot be opened.
    """
    from siren_train.measure.evaluate import NO_ROWS
    from siren_train.measure.generator import score_with_generator, write_graft_decision

    rules.check()
    generator = GuardedGenerator.load(folder, threads=rules.threads)
    heads = generator.manifest.heads
    name = next(iter(heads)) if head is None else head
    if name not in heads or heads[name].activation != "softmax":
        told = [name for name, spec in heads.items() if spec.activation == "softmax"]
        raise InputError(
            f"{folder}: of a generator heads of classes are calibrated, here {told}; found {name!r}"
        )
    scores = NO_ROWS
    if rules.sources:
        columns = rules.columns_of(Columns().classes)
        with Bars() as bars:
            of_split = rules.sources, columns, rules.split, rules.max_rows
            scores, refusals = score_with_generator(generator, name, *of_split, bars.update)
        if refusals:
            report(f"{len(refusals)} rows were left out, the first since {refusals[0]}")
    old = generator.manifest.decision(name)
    new = rules.decision(old, scores)
    write_graft_decision(folder, name, new)
    rules.tell(folder, old, new, scores)
