"""The report of a training run: training.json and training.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from siren_export.heads.selected import LayerSelection
from siren_runtime.bundle.types import Precision
from siren_train.measure import reports
from siren_train.measure.table import markdown_table
from siren_train.store.store import StoreManifest

from .probe import Probe
from .search import Trial

TABLE_FILE = "training.md"


class LayerReport(msgspec.Struct, frozen=True):
    """A layer's probe, and what the head reads of the layer.

    Attributes:
        macro_f1, by_dataset: of the probe, on the validation rows.
        strength: of the probe's L1 penalty.
        selected: how many channels the head reads.
        weight: the layer's.
    """

    layer: int
    macro_f1: float
    by_dataset: dict[str, float]
    strength: float
    selected: int
    weight: float


class TrialReport(msgspec.Struct, frozen=True):
    """A trial of the search; `score` is the mean macro-F1 over the folds that ran."""

    number: int
    params: dict[str, Any]
    score: float
    pruned: bool


class TrainingReport(msgspec.Struct, frozen=True):
    """A training run.

    Attributes:
        store: the first that the head was trained on.
        precisions: of all stores.
        noise: the precision of the engine whose differences the head was trained not to mind.
        rows: how many there are in each split, copies included.
        copies: how many of the rows are copies of others: wrapped, or of another precision.
        share: of each probe's |weight|, which the channels that are selected hold.
        head: the fields of its HeadConfig.
        cross_validation: mean macro-F1 of the best trial, whose heads have one member.
        temperature: that the head's logits were divided by; None for a head of labels.
    """

    store: StoreManifest
    precisions: list[str]
    settings: dict[str, Any]
    rows: dict[str, int]
    copies: int
    layers: list[LayerReport]
    share: float
    head: dict[str, Any]
    cross_validation: float
    temperature: float | None
    trials: list[TrialReport]
    noise: Precision | None = None


def layer_reports(probes: Sequence[Probe], layers: Sequence[LayerSelection]) -> list[LayerReport]:
    """Put each layer's probe beside what was selected of it."""
    return [
        LayerReport(
            layer=probe.layer,
            macro_f1=probe.validation.mean,
            by_dataset=probe.validation.by_dataset,
            strength=probe.strength,
            selected=layer.channels.size,
            weight=layer.weight,
        )
        for probe, layer in zip(probes, layers, strict=True)
    ]


def trial_reports(trials: Sequence[Trial]) -> list[TrialReport]:
    """Shorten each trial's folds to their mean."""
    return [TrialReport(t.number, t.params, t.score, t.pruned) for t in trials]


def write_report(report: TrainingReport, folder: Path) -> None:
    """Write training.json and training.md into `folder`.

    Raises:
        InputError: a file cannot be written.
    """
    reports.write_report(folder, "training", report, _markdown(report))


def _markdown(report: TrainingReport) -> str:
    store = report.store
    settings = ", ".join(f"{key} {value}" for key, value in report.head.items())
    lines = [
        "# Training report",
        "",
        f"Backbone {store.model_id}, {report.settings['pooling']} of {len(report.layers)} layers "
        f"of {store.channels}, pooled in {' and '.join(report.precisions)}; "
        + ", ".join(f"{count:,} {split} rows" for split, count in report.rows.items())
        + (f" ({report.copies:,} of them copies)" if report.copies else "")
        + f"; seed {report.settings['seed']}."
        + (
            ""
            if report.noise is None
            else f" Trained to score alike whatever features in {report.noise} differ by."
        ),
        "",
        "Macro-F1 of each layer's L1 probe on the validation rows, and what the head reads:",
        "",
        *_layers(report.layers),
        "",
        f"The head: share {report.share:g}, {settings}. Cross-validated macro-F1 of one member "
        f"on train and validation rows: {report.cross_validation:.4f}."
        + (
            ""
            if report.temperature is None
            else f" Its logits are divided by {report.temperature:.3f}, the temperature that suits "
            "the rows left out."
        ),
        "",
        *_trials(report.trials),
    ]
    return "\n".join(lines) + "\n"


def _layers(layers: Sequence[LayerReport]) -> list[str]:
    names = list(layers[0].by_dataset)
    rows = [
        [
            str(layer.layer),
            f"{layer.macro_f1:.3f}",
            *(f"{layer.by_dataset[name]:.3f}" for name in names),
            f"{layer.strength:g}",
            str(layer.selected),
            f"{layer.weight:.2f}",
        ]
        for layer in layers
    ]
    return markdown_table(("layer", "mean", *names, "strength", "channels", "weight"), rows)


def _trials(trials: Sequence[TrialReport]) -> list[str]:
    rows = [
        [
            str(trial.number),
            "pruned" if trial.pruned else f"{trial.score:.4f}",
            *(f"{v:.3g}" if isinstance(v, float) else str(v) for v in trial.params.values()),
        ]
        for trial in trials
    ]
    return markdown_table(("trial", "macro-F1", *trials[0].params), rows)
