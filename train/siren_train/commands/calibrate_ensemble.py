"""What `siren calibrate` does with an ensemble: threshold and tiers of the mean of its scores."""

from pathlib import Path

from msgspec.structs import replace

from siren_runtime import Guard
from siren_runtime.bundle.ensemble import read_ensemble, write_ensemble
from siren_runtime.bundle.heads import Decision
from siren_runtime.commands.bars import Bars
from siren_runtime.errors import InputError
from siren_runtime.text.reading import AS_LLM_SIREN

from . import options
from .by_rules import ByRules


def calibrate_ensemble(folder: Path, rules: ByRules) -> None:
    """Choose a threshold and tiers on the rows of a split, and write them into ensemble.json.

    Raises:
        typer.BadParameter: there is no rule, or one that needs rows without any.
        InputError: its first head has labels, the data is unusable, or no threshold meets a rule.
        BundleError, BackendError: the ensemble cannot be opened.
    """
    from siren_train.measure.evaluate import NO_ROWS, score_rows

    rules.check()
    scores, manifest = NO_ROWS, read_ensemble(folder)
    read = {"threads": rules.threads, "exits": False, **AS_LLM_SIREN}
    with Guard.load(folder, **read) as guard, Bars() as bars:
        first = guard.manifests[0]
        if first.head.activation != "softmax":
            raise InputError(
                f"{folder}: of an ensemble heads of classes are calibrated; {first.primary!r} has "
                "labels, which have thresholds of their own in each member"
            )
        if rules.sources:
            columns = rules.columns_of(
                options.labels(first), trajectories=first.task == "trajectory"
            )
            of_split = rules.sources, columns, rules.split
            scores = score_rows(guard, *of_split, bars.update, max_rows=rules.max_rows)
        judge = guard.judge.primary
    old = Decision(judge.threshold, list(judge.tiers), responses=judge.responses)
    new = rules.decision(old, scores)
    kept = new.responses and replace(new.responses, spans=[])
    write_ensemble(
        folder, replace(manifest, threshold=new.threshold, tiers=new.tiers, responses=kept)
    )
    rules.tell(folder, old, new, scores)
