"""The probes of all layers, fitted side by side and kept in a work folder.

Each probe is written when it is fitted, so a run that was killed fits only those that are missing.
"""

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from joblib import Parallel, delayed

from siren_runtime.bundle.files import replacement
from siren_runtime.bundle.progress import Progress
from siren_runtime.errors import InputError
from siren_train.measure.metrics import MacroF1
from siren_train.store.features import FeatureSet, IntArray
from siren_train.store.store import FeatureStore

from .folds import FOLDS
from .probe import Probe, fit_probe
from .settings import Settings
from .splits import load_splits
from .work_folder import check_run, claimed


def fit_probes(
    train_rows: FeatureSet,
    validation: FeatureSet,
    work: Path,
    *,
    strengths: Sequence[Sequence[float]],
    workers: int,
    progress: Progress,
    stage: str = "probes",
) -> list[Probe]:
    """Fit the probes that `work` lacks, and return those of all layers, by layer.

    Args:
        work: holds a file for each probe.
        strengths: of each layer, those to choose from.
        workers: layers that are fitted at once.
        stage: what `progress` is told; it counts layers.

    Raises:
        InputError: a pooled neuron is not finite, or a file in `work` is damaged or cannot be
            written.
    """
    progress(stage, 0, train_rows.layers)

    def probe(layer: int) -> Probe:
        path = work / f"probe.{layer}.npz"
        if not path.exists():
            fitted = fit_probe(train_rows, validation, layer, strengths=strengths[layer])
            _write_probe(path, fitted)
        return _read_probe(path)

    probes = []
    # Processes, not threads: liblinear draws from a generator that is global to its process.
    parallel = Parallel(n_jobs=min(workers, train_rows.layers), return_as="generator")
    for fitted in parallel(delayed(probe)(layer) for layer in range(train_rows.layers)):
        probes.append(fitted)
        progress(stage, len(probes), train_rows.layers)
    return probes


def probed_rows(
    work: Path,
    stores: Sequence[FeatureStore],
    settings: Settings,
    *,
    layer: int | None,
    workers: int,
    progress: Progress,
) -> tuple[FeatureSet, FeatureSet, list[Probe]]:
    """Fit the probes of all layers in a folder that this run claims.

    Args:
        layer: the only one that counts; None is all.

    Returns:
        The train rows, the validation rows without copies, and the probes that count.

    Raises:
        InputError: as `fit_probes` and `load_splits`, or there is no such layer, or `work` holds
            another run.
    """
    train_rows, validation = load_splits(stores, settings)
    validation = validation.without_copies()
    if layer is not None and layer >= train_rows.layers:
        raise InputError(f"{stores[0].folder}: has layers 0 to {train_rows.layers - 1}")
    with claimed(work, stores, settings):
        probes = fit_probes(
            train_rows,
            validation,
            work,
            strengths=[settings.strengths] * train_rows.layers,
            workers=workers,
            progress=progress,
        )
    return train_rows, validation, probes if layer is None else [probes[layer]]


def read_probes(
    work: Path, stores: Sequence[FeatureStore], settings: Settings, layers: int
) -> list[Probe]:
    """Return the probes of all layers that another run has fitted on the same stores.

    Args:
        work: its folder.
        settings: of this run, which reads the same pooling.

    Raises:
        InputError: one is missing or damaged, or they are of other features.
    """
    check_run(work, stores, settings)
    return [_read_probe(work / f"probe.{layer}.npz") for layer in range(layers)]


def fit_fold_probes(
    train_rows: FeatureSet,
    validation: FeatureSet,
    folds: IntArray,
    probes: Sequence[Probe],
    work: Path,
    *,
    workers: int,
    progress: Progress,
) -> list[list[Probe]]:
    """Fit `probes` again for each fold, at the strengths they have and without the fold's rows.

    Args:
        folds: int64 [rows] of `train_rows` and then `validation`, as make_folds returns them.
        work: gets a folder for each fold.

    Returns:
        The probes of each fold, by layer.

    Raises:
        InputError: as `fit_probes`.
    """
    in_train, in_validation = np.split(folds, [train_rows.rows])
    fitted = []
    for fold in range(FOLDS):
        folder = work / f"fold.{fold}"
        folder.mkdir(exist_ok=True)
        fitted.append(
            fit_probes(
                train_rows.where(in_train != fold),
                validation.where(in_validation != fold).without_copies(),
                folder,
                strengths=[(probe.strength,) for probe in probes],
                workers=workers,
                progress=progress,
                stage=f"probes without fold {fold + 1}",
            )
        )
    return fitted


def _write_probe(path: Path, probe: Probe) -> None:
    with replacement(path, InputError) as partial, partial.open("wb") as file:
        np.savez(
            file,
            layer=probe.layer,
            weights=probe.weights,
            strength=probe.strength,
            mean=probe.validation.mean,
            names=list(probe.validation.by_dataset),
            scores=list(probe.validation.by_dataset.values()),
        )


def _read_probe(path: Path) -> Probe:
    try:
        with np.load(path) as file:
            by_dataset = dict(zip(file["names"].tolist(), file["scores"].tolist(), strict=True))
            return Probe(
                int(file["layer"]),
                file["weights"],
                float(file["strength"]),
                MacroF1(float(file["mean"]), by_dataset),
            )
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(
            f"{path}: not a readable probe: {error}; remove it, and train again"
        ) from None
