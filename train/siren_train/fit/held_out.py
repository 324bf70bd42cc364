"""How a head fares on rows of a kind that it was not trained on.

Rows of one source resemble one another, so a head can do well on them by what their source leaves
in them. What it makes of a source that it never saw says more of traffic. So each source is left
out in turn, and each whole data set too, which takes away its kind of text as well.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_export.heads.selected import LayerSelection
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError
from siren_train.measure.metrics import dataset_macro_f1
from siren_train.measure.table import markdown_table
from siren_train.store.features import FeatureSet, IntArray
from siren_train.store.store import FeatureStore

from .head import HeadConfig, fit_head, head_logits
from .selection import gather
from .settings import Settings
from .workers import worker_pool

Mask = NDArray[np.bool_]


class HeldOut(msgspec.Struct, frozen=True):
    """Macro-F1 on the validation rows of a data set, of one MLP that was fitted on train rows.

    Attributes:
        sources: how many the rows come from.
        trained: fitted on all rows.
        without_source: each row by an MLP that saw none of its source, in any data set.
        without_dataset: fitted without this data set.
    """

    dataset: str
    rows: int
    sources: int
    trained: float
    without_source: float
    without_dataset: float

    @property
    def worse(self) -> float:
        """The lower of what a head that saw the sources makes of them, and one that did not."""
        return min(self.trained, self.without_source)


def check_held_out(store: FeatureStore, settings: Settings) -> None:
    """Refuse a store of which no row is left to train on without a source, or without a data set.

    Raises:
        InputError: it is such a store, or as `FeatureStore.features`.
    """
    train, validation = (
        store.features(split, settings.pooling, settings.head) for split in ("train", "validation")
    )
    for one in (lambda rows: rows.datasets, _sources):
        used = np.unique(one(train))
        if len(used) == 1 and used[0] in one(validation):
            raise InputError(
                f"{store.folder}: all train rows are of one data set or source, and none is left "
                "to train on without it; add another, or leave --held-out out"
            )


def measure_held_out(
    train: FeatureSet,
    validation: FeatureSet,
    layers: Sequence[LayerSelection],
    config: HeadConfig,
    *,
    seed: int,
    workers: int = 1,
    progress: Progress = silent,
) -> list[HeldOut]:
    """Fit a head without each source and without each data set in turn, and one with all.

    The channels are those that were selected with all rows, also those that are left out.

    Args:
        validation: without copies; its data sets are measured.
        workers: threads.
    """
    train_sources, sources = _sources(train), _sources(validation)
    nobody = np.zeros(train.rows, np.bool_)
    by_source = {source: train_sources == source for source in np.unique(sources)}
    by_dataset = {one: train.datasets == one for one in np.unique(validation.datasets)}
    masks = {mask.tobytes(): mask for mask in (nobody, *by_source.values(), *by_dataset.values())}
    inputs = gather(validation.pooled, layers)

    def predict(without: Mask) -> IntArray:
        head = fit_head(train, layers, config, rows=~without, seed=seed)
        return validation.decided(head_logits(head, inputs), validation.labels)

    progress("held out", 0, len(masks))
    found: dict[bytes, IntArray] = {}
    with worker_pool(workers) as pool:
        for key, predicted in zip(masks, pool.map(predict, masks.values()), strict=True):
            found[key] = predicted
            progress("held out", len(found), len(masks))

    unseen = np.empty_like(found[nobody.tobytes()])
    for source, mask in by_source.items():
        of_it = sources == source
        unseen[of_it] = found[mask.tobytes()][of_it]
    results = []
    for dataset, mask in by_dataset.items():
        rows = validation.datasets == dataset
        labels = validation.labels[rows]
        trained, alone = found[nobody.tobytes()], found[mask.tobytes()]
        results.append(
            HeldOut(
                validation.names[dataset],
                int(rows.sum()),
                len(np.unique(sources[rows])),
                *(dataset_macro_f1(labels, of[rows]) for of in (trained, unseen, alone)),
            )
        )
    return results


def held_out_markdown(results: Sequence[HeldOut]) -> str:
    """Return the table, as Markdown."""
    header = (
        "data set", "rows", "sources", "trained on all", "source left out", "data set left out",
    )  # fmt: skip
    scores = [(r.trained, r.without_source, r.without_dataset) for r in results]
    rows = [
        [r.dataset, str(r.rows), str(r.sources), *(f"{score:.3f}" for score in of_set)]
        for r, of_set in zip(results, scores, strict=True)
    ]
    rows.append(["mean", "", "", *(f"{np.mean(one):.3f}" for one in zip(*scores, strict=True))])
    lines = [
        "# Sources and data sets left out",
        "",
        "Macro-F1 on the validation rows of one MLP fitted on train rows: on all; each row by one "
        "that saw none of its source, in any data set; and on all but the data set that is "
        "measured. Which channels they read, and what each layer weighs, was chosen once by all "
        "train and validation rows, so what is left out still had a part in that.",
        "",
        *markdown_table(header, rows, left=1),
        "",
        "Mean of the worse of trained on all and source left out: "
        f"{np.mean([r.worse for r in results]):.3f}.",
    ]
    return "\n".join(lines) + "\n"


def _sources(rows: FeatureSet) -> IntArray:
    """Number the sources that rows come from, whatever their data set; one without is its own."""
    names = [name.partition("/")[2] or name for name in rows.collection_names]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)[rows.collections]
