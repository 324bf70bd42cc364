"""Feature store of prefixes -> probes -> the strongest neurons -> a forecast head and its report.

The head is fitted to the expected harm of what follows each prefix by cross-entropy, whose least is
at that expectation. Settings are those of the least cross-entropy on the validation rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from siren_export.heads.mlp import Dense
from siren_export.heads.mlp_artifact import write_mlp_artifact
from siren_export.heads.selected import LayerSelection
from siren_runtime.bundle.files import write_whole
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError
from siren_train.measure.metrics import auroc
from siren_train.measure.table import markdown_table
from siren_train.store.features import DoubleArray, FeatureSet, FloatArray, balanced_weights
from siren_train.store.store import FeatureStore

from .head import HeadConfig, head_logits, train_head
from .layer_probes import probed_rows
from .report import TABLE_FILE
from .selection import gains, gather, strongest
from .settings import Settings, artifact_facts

RATES, DECAYS, EPOCHS = (1e-3, 3e-3), (1e-4, 1e-2), (5, 20, 80)
_BALANCE = 0.5  # between data sets, as of `balanced_weights`


@dataclass(frozen=True)
class Forecast:
    """How a head forecasts on the validation rows of a data set.

    Attributes:
        cross_entropy: mean, in nats, between targets and forecasts.
        constant: the same of the mean train target, whatever the prefix.
        brier: mean squared difference of targets and forecasts.
        auroc: of targets from one half on against the others; None where one of these is missing.
    """

    rows: int
    cross_entropy: float
    constant: float
    brier: float
    auroc: float | None


@dataclass(frozen=True)
class ForecastReport:
    """A trained head: how many parameters it has, its settings, and its forecasts by data set."""

    parameters: int
    config: HeadConfig
    layers: tuple[LayerSelection, ...]
    by_dataset: dict[str, Forecast]

    @property
    def cross_entropy(self) -> float:
        """The mean over data sets."""
        return float(np.mean([one.cross_entropy for one in self.by_dataset.values()]))


def train(
    stores: Sequence[FeatureStore],
    output: Path,
    work: Path,
    settings: Settings,
    *,
    neurons: int,
    hidden: int,
    layer: int | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> ForecastReport:
    """Train a forecast head on the train rows, choose by the validation rows, and write it.

    Args:
        work: where probes are kept.
        neurons: how many the head reads, those of the largest weights in the layers' probes.
        hidden: width of the hidden layer of each member; 0 is a linear head, of one member.
        layer: the one that the head reads; None is all.

    Raises:
        InputError: the store lacks a split or targets, or has no such layer, or `work` holds
            another run.
    """
    train_rows, validation, chosen = probed_rows(
        work, stores, settings, layer=layer, workers=workers, progress=progress
    )
    layers = strongest(chosen, neurons, settings.weighting)
    report, dense = _best(train_rows, validation, layers, hidden, settings, workers, progress)
    manifest = stores[0].manifest
    write_mlp_artifact(
        output,
        **artifact_facts(manifest, settings),
        pooling=settings.mean_pooling,
        layers=layers,
        dense=dense,
        activation="logistic",
        trained_on=manifest.generator,
    )
    write_whole(output / TABLE_FILE, _markdown(report).encode(), InputError)
    return report


def _best(
    train_rows: FeatureSet,
    validation: FeatureSet,
    layers: tuple[LayerSelection, ...],
    hidden: int,
    settings: Settings,
    workers: int,
    progress: Progress,
) -> tuple[ForecastReport, tuple[Dense, ...]]:
    """The head of the least cross-entropy on the validation rows, and what it does there."""
    features, held_out = gather(train_rows.pooled, layers), gather(validation.pooled, layers)
    targets = _targets(train_rows)
    weights = balanced_weights(train_rows, _BALANCE)
    constant = float(np.average(targets, weights=weights))
    found = []
    grid = [*product(RATES, DECAYS, EPOCHS)]
    for done, (rate, decay, epochs) in enumerate(grid, start=1):
        config = HeadConfig(
            hidden=(hidden,) if hidden else (),
            learning_rate=rate,
            weight_decay=decay,
            epochs=epochs,
            members=settings.members if hidden else 1,
        )
        dense = train_head(
            features,
            targets[:, None].astype(np.float32),
            weights,
            gains(layers),
            1,
            config,
            seed=settings.seed,
            workers=workers,
        )
        report = ForecastReport(
            sum(part.weight.size + part.bias.size for part in dense),
            config,
            layers,
            _measured(validation, head_logits(dense, held_out)[:, 0], constant),
        )
        found.append((report, dense))
        progress("heads", done, len(grid))
    return min(found, key=lambda one: one[0].cross_entropy)


def _targets(rows: FeatureSet) -> DoubleArray:
    assert rows.expected_harm is not None  # a store of prefixes has them
    return rows.expected_harm


def _measured(rows: FeatureSet, logits: FloatArray, constant: float) -> dict[str, Forecast]:
    """What logits [rows] forecast, by data set."""
    found = {}
    odds = np.log(constant) - np.log1p(-constant) if 0 < constant < 1 else 0.0
    for index, name in enumerate(rows.names):
        own = rows.datasets == index
        if not own.any():
            continue
        targets, of_own = _targets(rows)[own], logits[own].astype(np.float64)
        found[name] = Forecast(
            rows=len(targets),
            cross_entropy=_cross_entropy(targets, of_own),
            constant=_cross_entropy(targets, np.full(len(targets), odds)),
            brier=float(np.mean((targets - np.exp(-np.logaddexp(0, -of_own))) ** 2)),
            auroc=auroc(targets >= 0.5, of_own),
        )
    return found


def _cross_entropy(targets: DoubleArray, logits: DoubleArray) -> float:
    return float(np.mean(np.logaddexp(0, logits) - targets * logits))


def _markdown(report: ForecastReport) -> str:
    config = report.config
    header = "data set", "prefixes", "cross-entropy", "constant", "Brier score", "AUROC"
    rows = [
        [
            name,
            f"{one.rows:,}",
            *(f"{value:.4f}" for value in (one.cross_entropy, one.constant, one.brier)),
            "-" if one.auroc is None else f"{one.auroc:.3f}",
        ]
        for name, one in report.by_dataset.items()
    ]
    lines = [
        "# Training report",
        "",
        f"A forecast head of {report.parameters:,} parameters over "
        f"{sum(layer.channels.size for layer in report.layers)} neurons of layers "
        f"{', '.join(str(layer.layer) for layer in report.layers)}; learning rate "
        f"{config.learning_rate:g}, weight decay {config.weight_decay:g}, {config.epochs} epochs.",
        "",
        "On the validation prefixes, by which these were chosen: cross-entropy in nats, and that "
        "of a forecast that is the mean train target whatever the prefix.",
        "",
        *markdown_table(header, rows, left=1),
    ]
    return "\n".join(lines) + "\n"
