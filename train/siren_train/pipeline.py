"""Feature store -> probes -> search -> head artifact, with its report beside it.

Every stage keeps its result in a work folder, so a run that was killed goes on where it was and
ends with the head of an undisturbed one. Test rows are not read.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from joblib import Parallel, delayed

from siren_runtime.errors import InputError
from siren_runtime.manifest import Pooling

from .ablate import AblationResult, ablation_variants
from .ablate import ablate as measure_variants
from .features import FeatureSet, balanced_weights
from .files import write_atomically
from .head import train_head
from .head_file import write_head
from .metrics import MacroF1
from .probe import STRENGTHS, Probe, fit_probe
from .report import TrainingReport, layer_reports, trial_reports
from .search import best_trial, make_choice, read_history, search_head
from .selection import LayerWeighting, gains, gather, select_layers
from .store import STORE_FILE, FeatureStore

SETTINGS_FILE, HISTORY_FILE, ABLATION_FILE = "settings.json", "trials.jsonl", "ablation.jsonl"

Progress = Callable[[str, int, int], None]  # stage; done; in all


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a training run is asked for.

    Attributes:
        shares: of |weight| that the search may choose among.
        max_layer: read only the first so many layers; None reads all.
        members: MLPs that the final head averages.
        threshold: written into the artifact.
        half: store the head in float16.
        hold_out_validation: fit the final head on the train rows alone, so that the validation
            rows can calibrate it.
    """

    pooling: Pooling = "residual_mean"
    shares: tuple[float, ...] = (0.6, 0.8, 0.9, 1.0)
    weighting: LayerWeighting = "adaptive"
    max_layer: int | None = None
    strengths: tuple[float, ...] = STRENGTHS
    trials: int = 16
    members: int = 4
    seed: int = 0
    threshold: float = 0.5
    half: bool = True
    hold_out_validation: bool = False


def train(
    store: FeatureStore,
    output: Path,
    work: Path,
    settings: Settings,
    *,
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> TrainingReport:
    """Train a head on the train and validation rows of `store`, and write it to `output`.

    Args:
        work: where the stages keep their results.
        workers: threads; the head does not depend on how many.

    Raises:
        InputError: the store lacks what `settings` asks for, or `work` holds another run.
    """
    fitting, validation = load_splits(store, settings)
    _claim(work, store, settings)
    probes = fit_probes(
        fitting, validation, work, strengths=settings.strengths, workers=workers, progress=progress
    )
    everything = FeatureSet.concatenate(fitting, validation)
    choice, trials = search_head(
        everything,
        probes,
        work / HISTORY_FILE,
        trials=settings.trials,
        seed=settings.seed,
        shares=settings.shares,
        measured=np.unique(validation.datasets),
        weighting=settings.weighting,
        workers=workers,
        progress=lambda done, total: progress("search", done, total),
    )
    layers = select_layers(probes, share=choice.share, weighting=settings.weighting)
    config = replace(choice.config, members=settings.members)
    progress("final fit", 0, 1)
    final = fitting if settings.hold_out_validation else everything
    head = train_head(
        gather(final, layers),
        final.labels,
        balanced_weights(final.datasets, config.balance),
        gains(layers),
        len(final.classes),
        config,
        seed=settings.seed,
        workers=workers,
    )
    progress("final fit", 1, 1)
    report = TrainingReport(
        store=store.manifest,
        settings=msgspec.to_builtins(settings),
        rows={"train": fitting.rows, "validation": validation.rows},
        layers=layer_reports(probes, layers),
        share=choice.share,
        head=msgspec.to_builtins(config),
        cross_validation=best_trial(trials).score,
        trials=trial_reports(trials),
    )
    write_head(
        output,
        model_id=store.manifest.model_id,
        model_revision=store.manifest.model_revision,
        pooling=settings.pooling,
        layers=layers,
        head=head,
        max_length=store.manifest.max_length,
        threshold=settings.threshold,
        class_names=everything.classes,
        half=settings.half,
    )
    return report


def ablate(
    store: FeatureStore,
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
    fitting, validation = load_splits(store, settings)
    _claim(work, store, settings)
    trials = read_history(work / HISTORY_FILE)
    if len(trials) < settings.trials:
        raise InputError(f"{work}: the search has {len(trials)} of {settings.trials} trials; train")
    choice = make_choice(best_trial(trials).params)
    return measure_variants(
        fitting,
        validation,
        fit_probes(
            fitting,
            validation,
            work,
            strengths=settings.strengths,
            workers=workers,
            progress=progress,
        ),
        ablation_variants(fitting.layers, choice, settings.weighting, settings.shares),
        choice.config,
        work / ABLATION_FILE,
        seed=settings.seed,
        workers=workers,
        progress=progress,
    )


def load_splits(store: FeatureStore, settings: Settings) -> tuple[FeatureSet, FeatureSet]:
    """Return the train and validation rows, cut to the first `settings.max_layer` layers.

    Raises:
        InputError: the store has no such pooling, splits or layers.
    """
    layers = store.manifest.layers
    if settings.max_layer is not None and not 1 <= settings.max_layer <= layers:
        raise InputError(
            f"{store.folder}: max_layer is {settings.max_layer}; the backbone has {layers} layers"
        )
    fitting, validation = (
        store.features(split, settings.pooling).first_layers(settings.max_layer or layers)
        for split in ("train", "validation")
    )
    return fitting, validation


def fit_probes(
    train_rows: FeatureSet,
    validation: FeatureSet,
    work: Path,
    *,
    strengths: Sequence[float],
    workers: int,
    progress: Progress,
) -> list[Probe]:
    """Fit the probes that `work` lacks, `workers` layers at a time; return all, by layer."""
    progress("probes", 0, train_rows.layers)

    def probe(layer: int) -> Probe:
        path = work / f"probe.{layer}.npz"
        if not path.exists():
            _write_probe(path, fit_probe(train_rows, validation, layer, strengths=strengths))
        return _read_probe(path)

    probes = []
    # Processes, not threads: liblinear draws from a generator that is global to its process.
    parallel = Parallel(n_jobs=min(workers, train_rows.layers), return_as="generator")
    for fitted in parallel(delayed(probe)(layer) for layer in range(train_rows.layers)):
        probes.append(fitted)
        progress("probes", len(probes), train_rows.layers)
    return probes


def _claim(work: Path, store: FeatureStore, settings: Settings) -> None:
    """Make `work` that of this run, or see that it is. More trials may be asked for later."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / SETTINGS_FILE
    run = {
        "store": msgspec.to_builtins(store.manifest),
        "settings": {**msgspec.to_builtins(settings), "trials": None, "members": None},
    }
    data = msgspec.json.format(msgspec.json.encode(run)) + b"\n"
    if not path.exists():
        write_atomically(path, data)
    elif path.read_bytes() != data:
        raise InputError(
            f"{path}: the work of a run with other settings or features; remove {work}, or "
            f"choose another with --work ({STORE_FILE} or an option changed)"
        )


def _write_probe(path: Path, probe: Probe) -> None:
    temporary = path.with_name(f".{path.stem}.partial.npz")
    np.savez(
        temporary,
        layer=probe.layer,
        weights=probe.weights,
        strength=probe.strength,
        mean=probe.validation.mean,
        names=list(probe.validation.by_dataset),
        scores=list(probe.validation.by_dataset.values()),
    )
    temporary.replace(path)


def _read_probe(path: Path) -> Probe:
    with np.load(path) as file:
        by_dataset = dict(zip(file["names"].tolist(), file["scores"].tolist(), strict=True))
        return Probe(
            int(file["layer"]),
            file["weights"],
            float(file["strength"]),
            MacroF1(float(file["mean"]), by_dataset),
        )
