"""Feature store -> probes -> search -> head artifact, with its report beside it.

Every stage keeps its result in a work folder, so a run that was killed goes on where it was and
ends with the head of an undisturbed one. Test rows are not read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from importlib import metadata
from pathlib import Path
from zipfile import BadZipFile

import msgspec
import numpy as np
from joblib import Parallel, delayed

from siren_runtime.errors import InputError
from siren_train.measure.metrics import MacroF1
from siren_train.store.features import FeatureSet, IntArray
from siren_train.store.files import locked, replaced, write_atomically
from siren_train.store.store import STORE_FILE, FeatureStore

from .ablate import AblationResult, ablation_variants
from .ablate import ablate as measure_variants
from .head import fit_head
from .head_file import write_head
from .probe import Probe, fit_probe
from .report import TrainingReport, layer_reports, trial_reports
from .search import FOLDS, best_trial, make_choice, make_folds, read_history, search_head
from .selection import select_layers
from .settings import Settings

SETTINGS_FILE, HISTORY_FILE = "settings.json", "trials.jsonl"
WORK_VERSION = 2  # raise it when a stage comes to another result from the same features
_DECIDING = ("numpy", "scikit-learn", "optuna", "torch")  # so do other releases of these
# What is read after the stages that a work folder keeps, so it may be another the next time.
_LATE = ("trials", "members", "threshold", "half", "hold_out_validation")

Progress = Callable[[str, int, int], None]  # stage; done; in all


def train(
    stores: Sequence[FeatureStore],
    output: Path,
    work: Path,
    settings: Settings,
    *,
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> TrainingReport:
    """Train a head on the train and validation rows of `stores`, and write it to `output`.

    Args:
        stores: of the same rows, pooled in different precisions; the head is trained on all and
            measured on the first.
        work: where the stages keep their results.
        workers: threads; the head does not depend on how many.

    Raises:
        InputError: a store lacks what `settings` asks for, they are of different rows, too few of
            a class, or `work` holds another run, or one that is under way.
    """
    fitting, validation = load_splits(stores, settings)
    measured = validation.without_copies()
    everything = FeatureSet.concatenate(fitting, validation)
    folds = make_folds(everything, FOLDS, settings.seed, np.unique(measured.datasets))
    _check_folds(folds, fitting, validation, stores[0].folder)
    with _claim(work, stores, settings):
        probes = fit_probes(
            fitting,
            measured,
            work,
            strengths=[settings.strengths] * fitting.layers,
            workers=workers,
            progress=progress,
        )
        choice, trials = search_head(
            everything,
            folds,
            fit_fold_probes(
                fitting, validation, folds, probes, work, workers=workers, progress=progress
            ),
            work / HISTORY_FILE,
            trials=settings.trials,
            seed=settings.seed,
            shares=settings.shares,
            weighting=settings.weighting,
            workers=workers,
            progress=lambda done, total: progress("search", done, total),
        )
    layers = select_layers(probes, share=choice.share, weighting=settings.weighting)
    config = replace(choice.config, members=settings.members)
    progress("final fit", 0, 1)
    final = fitting if settings.hold_out_validation else everything
    head = fit_head(final, layers, config, seed=settings.seed, workers=workers)
    progress("final fit", 1, 1)
    store = stores[0].manifest
    report = TrainingReport(
        store=store,
        precisions=[each.manifest.precision for each in stores],
        settings=msgspec.to_builtins(settings),
        rows={"train": fitting.rows, "validation": validation.rows},
        copies=int(fitting.is_copy.sum() + validation.is_copy.sum()),
        layers=layer_reports(probes, layers),
        share=choice.share,
        head=msgspec.to_builtins(config),
        cross_validation=best_trial(trials).score,
        trials=trial_reports(trials),
    )
    write_head(
        output,
        model_id=store.model_id,
        model_revision=store.model_revision,
        pooling=settings.pooling,
        layers=layers,
        head=head,
        max_length=store.max_length,
        threshold=settings.threshold,
        class_names=everything.classes,
        half=settings.half,
    )
    return report


def ablate(
    stores: Sequence[FeatureStore],
    work: Path,
    settings: Settings,
    *,
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> list[AblationResult]:
    """Measure what each part of the trained head in `work` is worth.

    Raises:
        InputError: `work` does not hold a finished run of these settings.
    """
    fitting, validation = load_splits(stores, settings)
    measured = validation.without_copies()
    with _claim(work, stores, settings):
        trials = read_history(work / HISTORY_FILE)[: settings.trials]
        if len(trials) < settings.trials:
            raise InputError(
                f"{work}: the search has {len(trials)} of {settings.trials} trials; train"
            )
        best = best_trial(trials)
        choice = make_choice(best.params)
        return measure_variants(
            fitting,
            measured,
            fit_probes(
                fitting,
                measured,
                work,
                strengths=[settings.strengths] * fitting.layers,
                workers=workers,
                progress=progress,
            ),
            ablation_variants(fitting.layers, choice, settings.weighting, settings.shares),
            choice.config,
            work / f"ablation.{best.number}.jsonl",  # more trials may come to another head
            seed=settings.seed,
            workers=workers,
            progress=progress,
        )


def load_splits(
    stores: Sequence[FeatureStore], settings: Settings
) -> tuple[FeatureSet, FeatureSet]:
    """Return the train and validation rows, cut to the first `settings.max_layer` layers.

    The rows of the second store and on are copies of those of the first.

    Raises:
        InputError: a store has no such pooling, splits or layers, or is not of the first's rows.
    """
    store = stores[0]
    for other in stores[1:]:
        _check_same_rows(store, other)
    layers = store.manifest.layers
    if settings.max_layer is not None and not 1 <= settings.max_layer <= layers:
        raise InputError(
            f"{store.folder}: max_layer is {settings.max_layer}; the backbone has {layers} layers"
        )
    fitting, validation = (
        reduce(FeatureSet.with_copies, (each.features(split, settings.pooling) for each in stores))
        for split in ("train", "validation")
    )
    depth = settings.max_layer or layers
    return fitting.first_layers(depth), validation.first_layers(depth)


def _check_same_rows(first: FeatureStore, other: FeatureStore) -> None:
    for field in first.manifest.__struct_fields__:
        expected, found = getattr(first.manifest, field), getattr(other.manifest, field)
        if field not in ("precision", "dtype") and found != expected:
            raise InputError(
                f"{other.folder}: stores that a head is trained on together hold the same rows, "
                f"but {field} is {found!r} here and {expected!r} in {first.folder}"
            )


def _check_folds(
    folds: IntArray, fitting: FeatureSet, validation: FeatureSet, folder: Path
) -> None:
    """Refuse rows so few that a fold, or what is left without it, cannot be fitted or measured."""
    in_train, in_validation = np.split(folds, [fitting.rows])
    for fold in range(FOLDS):
        left = np.bincount(fitting.labels[in_train != fold], minlength=len(fitting.classes))
        for name in np.array(fitting.classes)[left == 0].tolist():
            raise InputError(
                f"{folder}: the train rows of class {name!r} are too few: none is left once one "
                f"of {FOLDS} folds is held out; add rows of it"
            )
        if not (in_validation != fold).any() or not (folds == fold).any():
            raise InputError(
                f"{folder}: {fitting.rows} train and {validation.rows} validation rows are too "
                f"few for {FOLDS} folds; add rows"
            )


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
    """Fit the probes that `work` lacks, `workers` layers at a time; return all, by layer.

    Args:
        strengths: of each layer, to choose from.
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
    """Fit `probes` again for each fold, without its rows and at the strengths they have."""
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


@contextmanager
def _claim(work: Path, stores: Sequence[FeatureStore], settings: Settings) -> Iterator[None]:
    """Make `work` that of this run, or see that it is, and keep others out of it."""
    path = work / SETTINGS_FILE
    run = {
        "format_version": WORK_VERSION,
        "versions": {package: metadata.version(package) for package in _DECIDING},
        "stores": [msgspec.to_builtins(store.manifest) for store in stores],
        "settings": {
            name: value
            for name, value in msgspec.to_builtins(settings).items()
            if name not in _LATE
        },
    }
    data = msgspec.json.format(msgspec.json.encode(run)) + b"\n"
    with locked(work, "siren train"):
        if not path.exists():
            write_atomically(path, data)
        elif path.read_bytes() != data:
            raise InputError(
                f"{path}: the work of a run with other settings, features or releases; remove "
                f"{work}, or choose another with --work ({STORE_FILE}, an option, siren-edge or "
                f"one of {', '.join(_DECIDING)} changed)"
            )
        yield


def _write_probe(path: Path, probe: Probe) -> None:
    with replaced(path) as temporary:
        np.savez(
            temporary,
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
