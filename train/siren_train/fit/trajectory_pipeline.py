"""Feature store of trajectories -> a logistic regression a layer -> the best one as a head.

The head reads one state, at the last token of a trajectory, and blocks above it are not run. So
every layer gets its own fit, and of equally good ones the lowest wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from siren_export.heads.trajectory import TrajectoryHead
from siren_export.heads.trajectory_artifact import write_trajectory_artifact
from siren_runtime.bundle.files import write_whole
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError
from siren_train.measure.metrics import MacroF1, macro_f1_by_dataset
from siren_train.measure.table import markdown_table
from siren_train.store.features import DoubleArray, FeatureSet, Standardizer, balanced_weights
from siren_train.store.store import FeatureStore

from .logistic import fit_logistic
from .report import TABLE_FILE
from .settings import Settings, artifact_facts
from .splits import load_splits

_INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of L2, on standardized states
_BALANCE = 0.5  # between data sets, as of `balanced_weights`


@dataclass(frozen=True)
class LayerFit:
    """The best fit of a layer: the inverse L2 penalty, and macro-F1 on the validation rows."""

    layer: int
    inverse_penalty: float
    validation: MacroF1


def train(
    stores: Sequence[FeatureStore],
    output: Path,
    settings: Settings,
    *,
    layer: int | None = None,
    progress: Progress = silent,
) -> LayerFit:
    """Fit every layer on the train rows, choose by the validation rows, and write the head.

    The chosen one is fitted again on all these rows, unless validation rows are held out.

    Args:
        layer: the one that the head reads; None is the best.

    Returns:
        The layer that the head reads, and how it did.

    Raises:
        InputError: the store lacks a split or is not of trajectories, has other than two classes,
            no such layer, or what is not finite.
    """
    train_rows, validation = load_splits(stores, settings)
    validation = validation.without_copies()
    folder, manifest = stores[0].folder, stores[0].manifest
    if len(train_rows.classes) != 2:
        raise InputError(
            f"{folder}: a trajectory head tells two classes apart, found "
            f"{', '.join(train_rows.classes)}"
        )
    if layer is not None and layer >= train_rows.layers:
        raise InputError(f"{folder}: has layers 0 to {train_rows.layers - 1}")
    layers = range(train_rows.layers) if layer is None else [layer]
    fits = []
    for done, one in enumerate(layers, start=1):
        fits.append(_best_of_layer(train_rows, validation, one))
        progress("layers", done, len(layers))
    best = max(fits, key=lambda fit: (fit.validation.mean, -fit.layer))
    rows = train_rows
    if not settings.hold_out_validation:
        rows = FeatureSet.concatenate(train_rows, validation)
    weight, bias = _fit(rows, best.layer, best.inverse_penalty)
    write_trajectory_artifact(
        output,
        TrajectoryHead((best.layer,), weight.astype(np.float32), bias),
        **artifact_facts(manifest, settings),
    )
    write_whole(output / TABLE_FILE, _markdown(fits, best).encode(), InputError)
    return best


def _best_of_layer(train_rows: FeatureSet, validation: FeatureSet, layer: int) -> LayerFit:
    """The penalty of the best macro-F1 at one half; of equally good ones the strongest."""
    found = []
    for inverse_penalty in _INVERSE_PENALTIES:
        weight, bias = _fit(train_rows, layer, inverse_penalty)
        logits = validation.pooled[:, layer].astype(np.float64) @ weight + bias
        verdicts = (logits >= 0).astype(np.int64)
        score = macro_f1_by_dataset(
            validation.labels, verdicts, validation.datasets, validation.names
        )
        found.append(LayerFit(layer, inverse_penalty, score))
    return max(found, key=lambda fit: (fit.validation.mean, -fit.inverse_penalty))


def _fit(rows: FeatureSet, layer: int, inverse_penalty: float) -> tuple[DoubleArray, float]:
    """Fit one layer; return weights float64 [channels] and bias on the states as they are."""
    states = rows.pooled[:, layer]
    standardizer = Standardizer.fit(states)
    inputs = standardizer.apply(states).astype(np.float64)
    if not np.isfinite(inputs).all():
        raise InputError(f"layer {layer}: a feature is not finite; extract again")
    weights = balanced_weights(rows, _BALANCE)
    weight, bias = fit_logistic(inputs, rows.labels, weights, inverse_penalty)
    weight = weight / standardizer.scale
    return weight, float(bias - weight @ standardizer.mean.astype(np.float64))


def _markdown(fits: Sequence[LayerFit], best: LayerFit) -> str:
    rows = [
        [
            str(fit.layer),
            f"{fit.inverse_penalty:g}",
            *(f"{f1:.4f}" for f1 in (fit.validation.mean, *fit.validation.by_dataset.values())),
        ]
        for fit in fits
    ]
    lines = [
        "# Training report",
        "",
        "Macro-F1 at one half on the validation rows, by which layer and penalty were chosen.",
        "",
        *markdown_table(("layer", "inverse penalty", "mean", *best.validation.by_dataset), rows),
        "",
        f"The head reads layer {best.layer}.",
    ]
    return "\n".join(lines) + "\n"
