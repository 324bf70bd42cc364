"""How a head fares on a data set that it was not trained on: each left out in turn.

Rows of one source resemble one another, so a head can do well on them by what their source leaves
in them. What it makes of a source that it never saw says more of traffic.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from siren_export.heads.selected import LayerSelection
from siren_runtime.bundle.progress import Progress
from siren_train.measure.metrics import macro_f1
from siren_train.store.features import FeatureSet

from .head import HeadConfig, fit_head, head_logits
from .selection import gather


class HeldOut(msgspec.Struct, frozen=True):
    """Macro-F1 on the validation rows of a data set, of one MLP that was fitted on train rows.

    Attributes:
        trained: fitted on the rows of all data sets.
        held_out: fitted without those of this one.
    """

    dataset: str
    rows: int
    trained: float
    held_out: float


def measure_held_out(
    train: FeatureSet,
    validation: FeatureSet,
    layers: Sequence[LayerSelection],
    config: HeadConfig,
    *,
    seed: int,
    progress: Progress = lambda stage, done, total: None,
) -> list[HeldOut]:
    """Fit a head without each data set in turn, and one with all.

    The channels are those that were selected with all rows.

    Args:
        validation: without copies; its data sets are measured.
    """

    def predict(rows: np.ndarray) -> np.ndarray:
        head = fit_head(train, layers, config, rows=rows, seed=seed)
        logits = head_logits(head, gather(validation, layers))
        return validation.decided(logits, validation.labels)

    measured = np.unique(validation.datasets)
    progress("held out", 0, len(measured) + 1)
    trained = predict(np.ones(train.rows, np.bool_))
    found = []
    for done, dataset in enumerate(measured, start=1):
        progress("held out", done, len(measured) + 1)
        of_it = validation.datasets == dataset
        unseen = predict(train.datasets != dataset)
        labels = validation.labels[of_it]
        found.append(
            HeldOut(
                validation.names[dataset],
                int(of_it.sum()),
                macro_f1(labels, trained[of_it]),
                macro_f1(labels, unseen[of_it]),
            )
        )
    progress("held out", len(measured) + 1, len(measured) + 1)
    return found


def held_out_markdown(results: Sequence[HeldOut]) -> str:
    """Return the table, as Markdown."""
    lines = [
        "# Data sets left out",
        "",
        "Macro-F1 on the validation rows of one MLP fitted on train rows: of all data sets, and of "
        "all but the one that is measured.",
        "",
        "| data set | rows | trained on it | left out |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [f"| {r.dataset} | {r.rows} | {r.trained:.3f} | {r.held_out:.3f} |" for r in results]
    trained = np.mean([r.trained for r in results])
    held_out = np.mean([r.held_out for r in results])
    worse = np.mean([min(r.trained, r.held_out) for r in results])
    lines += [
        f"| mean | | {trained:.3f} | {held_out:.3f} |",
        "",
        f"Mean of the worse of the two: {worse:.3f}.",
    ]
    return "\n".join(lines) + "\n"
