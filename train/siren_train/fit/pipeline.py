"""Feature store -> probes -> search -> head artifact and report.

Every stage keeps its result in a work folder. So a run that was killed goes on where it was, and
ends with the head of an undisturbed one. Test rows are not read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from siren_export.heads.mlp import Dense
from siren_export.heads.mlp_artifact import write_mlp_artifact
from siren_export.heads.selected import LayerSelection
from siren_runtime.bundle.heads import LabelDecision
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError
from siren_train.store.features import FeatureSet
from siren_train.store.store import FeatureStore, StoreManifest

from .ablate import AblationResult, ablation_variants
from .ablate import ablate as measure_variants
from .folds import FOLDS, make_folds
from .head import HeadConfig, fit_head
from .held_out import HeldOut, measure_held_out
from .kept import Arrays, kept_arrays
from .label_decisions import decide_labels
from .layer_probes import fit_fold_probes, fit_probes, read_probes
from .probe import Probe
from .report import TrainingReport, layer_reports, trial_reports
from .search import CrossValidation, Trial, best_trial, make_choice, read_history, search_head
from .selection import select_layers
from .settings import Settings, artifact_facts
from .splits import check_folds, load_splits
from .temperature import cross_validated_temperature, fold_temperature
from .work_folder import claimed

HISTORY_FILE = "trials.jsonl"
HEAD_FILE = "head.npz"


def train(
    stores: Sequence[FeatureStore],
    output: Path,
    work: Path,
    settings: Settings,
    *,
    openai: Mapping[str, Sequence[str]] | None = None,
    probes_of: Path | None = None,
    noise: FeatureStore | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> TrainingReport:
    """Train a head on the train and validation rows of `stores`, and write it to `output`.

    Args:
        stores: of the same rows, pooled in different precisions. The head is trained on all of
            them, and measured on the first.
        work: the folder where the stages keep their results.
        openai: which labels cover each of OpenAI's 13 keys, written into a head of labels.
        probes_of: the work folder of another run on the same rows, whose probes choose what is
            read; so that one pass pools the same neurons for both heads.
        noise: of some of the same texts by another engine, whose scores the head's are to equal.
        workers: threads; the head does not depend on how many.

    Raises:
        InputError: a store lacks what `settings` asks for, the stores are of different rows, a
            class has too few rows, or `work` holds another run or one that is under way.
    """
    train_rows, validation = load_splits(stores, settings, noise)
    everything = FeatureSet.concatenate(train_rows, validation)
    if len(stores) > 1:  # whose rows were joined in memory, which is not to hold them twice
        pooled, count = everything.pooled, train_rows.rows
        train_rows = replace(train_rows, pooled=pooled[:count])
        validation = replace(validation, pooled=pooled[count:])
    measured = np.unique(validation.without_copies().datasets)
    folds = make_folds(everything, FOLDS, settings.seed, measured)
    check_folds(folds, train_rows, validation, stores[0].folder)
    with claimed(work, stores, settings, probes_of, noise):
        if probes_of is None:
            probes = _probe_layers(train_rows, validation, work, settings, workers, progress)
            of_folds = fit_fold_probes(
                train_rows, validation, folds, probes, work, workers=workers, progress=progress
            )
        else:
            probes = read_probes(probes_of, stores, settings, train_rows.layers)
            of_folds = [probes] * FOLDS
        setup = CrossValidation(
            everything, folds, of_folds, settings.weighting, settings.seed, work, workers
        )
        choice, trials = search_head(
            setup,
            work / HISTORY_FILE,
            trials=settings.trials,
            shares=settings.shares,
            hidden=settings.hidden,
            progress=progress,
        )
        labels = settings.head == "categories"
        suit = (setup, choice, settings.members, progress)
        decisions = decide_labels(*suit) if labels else []
        temperature = None if labels else cross_validated_temperature(*suit)
        layers = select_layers(probes, share=choice.share, weighting=settings.weighting)
        config = replace(choice.config, members=settings.members)
        final = train_rows if settings.hold_out_validation else everything
        head = _fit_final(final, layers, choice.share, config, work, settings, workers, progress)
    if temperature is not None:  # labels have one each, in their decisions
        head = fold_temperature(head, temperature)
    _write_head(output, stores[0].manifest, settings, layers, head, decisions, openai)
    return TrainingReport(
        store=stores[0].manifest,
        precisions=[store.manifest.precision for store in stores],
        noise=None if noise is None else noise.manifest.precision,
        settings=msgspec.to_builtins(settings),
        rows={"train": train_rows.rows, "validation": validation.rows},
        copies=int(train_rows.is_copy.sum() + validation.is_copy.sum()),
        layers=layer_reports(probes, layers),
        share=choice.share,
        head=msgspec.to_builtins(config),
        cross_validation=best_trial(trials).score,
        temperature=temperature,
        trials=trial_reports(trials),
    )


def _probe_layers(
    train_rows: FeatureSet,
    validation: FeatureSet,
    work: Path,
    settings: Settings,
    workers: int,
    progress: Progress,
) -> list[Probe]:
    return fit_probes(
        train_rows,
        validation.without_copies(),
        work,
        strengths=[settings.strengths] * train_rows.layers,
        workers=workers,
        progress=progress,
    )


def _fit_final(
    rows: FeatureSet,
    layers: Sequence[LayerSelection],
    share: float,
    config: HeadConfig,
    work: Path,
    settings: Settings,
    workers: int,
    progress: Progress,
) -> tuple[Dense, ...]:
    """Train the head on `rows`, where the work folder does not keep it."""
    of = {
        "share": share,
        "config": asdict(config),
        "hold_out_validation": settings.hold_out_validation,
    }

    def compute() -> Arrays:
        head = fit_head(
            rows,
            layers,
            config,
            seed=settings.seed,
            workers=workers,
            progress=partial(progress, "final fit"),
        )
        return {
            f"{part}.{number}": getattr(layer, part)
            for number, layer in enumerate(head)
            for part in ("weight", "bias")
        }

    arrays = kept_arrays(work / HEAD_FILE, of, compute)
    return tuple(
        Dense(arrays[f"weight.{number}"], arrays[f"bias.{number}"])
        for number in range(len(arrays) // 2)
    )


def _write_head(
    output: Path,
    store: StoreManifest,
    settings: Settings,
    layers: Sequence[LayerSelection],
    head: Sequence[Dense],
    decisions: Sequence[LabelDecision],
    openai: Mapping[str, Sequence[str]] | None,
) -> None:
    write_mlp_artifact(
        output,
        **artifact_facts(store, settings),
        pooling=settings.mean_pooling,
        layers=layers,
        dense=head,
        class_names=store.labels if settings.head == "categories" else store.classes,
        activation="sigmoid" if settings.head == "categories" else "softmax",
        openai=openai,
        decisions=decisions,
        half=settings.half,
        trained_on=store.generator,
    )


@dataclass(frozen=True, eq=False)
class _Finished:
    """A run whose search has ended: its rows, probes and best trial."""

    train_rows: FeatureSet
    validation: FeatureSet  # without copies
    probes: list[Probe]
    best: Trial


@contextmanager
def _finished(
    stores: Sequence[FeatureStore],
    work: Path,
    settings: Settings,
    noise: FeatureStore | None,
    workers: int,
    progress: Progress,
) -> Iterator[_Finished]:
    """Open the run that a head was trained in, to measure more on its rows.

    Args:
        stores, work, settings, noise: those that the head was trained with.
        workers: threads.

    Raises:
        InputError: `work` does not hold a finished run of these settings.
    """
    train_rows, validation = load_splits(stores, settings, noise)
    with claimed(work, stores, settings, noise=noise):
        trials = read_history(work / HISTORY_FILE)[: settings.trials]
        if len(trials) < settings.trials:
            raise InputError(
                f"{work}: the search has {len(trials)} of {settings.trials} trials; train"
            )
        probes = _probe_layers(train_rows, validation, work, settings, workers, progress)
        yield _Finished(train_rows, validation.without_copies(), probes, best_trial(trials))


def ablate(
    stores: Sequence[FeatureStore],
    work: Path,
    settings: Settings,
    *,
    noise: FeatureStore | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> list[AblationResult]:
    """Measure what each part of the head that was trained in `work` is worth; as `_finished`."""
    with _finished(stores, work, settings, noise, workers, progress) as run:
        choice = make_choice(run.best.params)
        return measure_variants(
            run.train_rows,
            run.validation,
            run.probes,
            ablation_variants(run.train_rows.layers, choice, settings.weighting, settings.shares),
            choice.config,
            work / f"ablation.{run.best.number}.jsonl",  # more trials may come to another head
            seed=settings.seed,
            workers=workers,
            progress=progress,
        )


def held_out(
    stores: Sequence[FeatureStore],
    work: Path,
    settings: Settings,
    *,
    noise: FeatureStore | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> list[HeldOut]:
    """Measure heads like the one trained in `work`, each without a source or a data set; as
    `_finished`.
    """
    with _finished(stores, work, settings, noise, workers, progress) as run:
        choice = make_choice(run.best.params)
        return measure_held_out(
            run.train_rows,
            run.validation,
            select_layers(run.probes, share=choice.share, weighting=settings.weighting),
            choice.config,
            seed=settings.seed,
            workers=workers,
            progress=progress,
        )
