"""Feature store -> probes -> selection -> polynomial head and its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siren_export.heads.polynomial_artifact import write_polynomial_artifact
from siren_export.heads.selected import LayerSelection
from siren_runtime.bundle.files import write_whole
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError
from siren_train.measure.metrics import MacroF1, macro_f1_by_dataset
from siren_train.measure.order_evaluation import order_costs
from siren_train.measure.table import markdown_table
from siren_train.store.features import FeatureSet
from siren_train.store.store import FeatureStore

from .head import HeadConfig, fit_head, head_logits
from .layer_probes import probed_rows
from .polynomial import OrderReport, train_polynomial
from .report import TABLE_FILE
from .selection import gather, select_layers
from .settings import Settings, artifact_facts


@dataclass(frozen=True)
class _Matched:
    """An MLP beside the polynomial: its parameters, its multiply-adds, and its macro-F1."""

    parameters: int
    cost: int
    validation: MacroF1


def train(
    stores: Sequence[FeatureStore],
    output: Path,
    work: Path,
    settings: Settings,
    *,
    layer: int | None,
    orders: int,
    rank: int,
    workers: int = 1,
    progress: Progress = silent,
) -> list[OrderReport]:
    """Train a polynomial head on the train rows, choose by the validation rows, and write it.

    Args:
        work: where probes are kept.
        layer: the one that the head reads; None is the selected neurons of all.
        orders, rank: as `train_polynomial`.

    Raises:
        InputError: the store lacks a split, has other than two classes, or no such layer, or `work`
            holds another run.
    """
    manifest = stores[0].manifest
    if len(manifest.classes) != 2:
        raise InputError(
            f"{stores[0].folder}: a polynomial head tells two classes apart, found "
            f"{', '.join(manifest.classes)}"
        )
    train_rows, validation, chosen = probed_rows(
        work, stores, settings, layer=layer, workers=workers, progress=progress
    )
    layers = select_layers(chosen, share=settings.shares[0], weighting=settings.weighting)
    head, reports = train_polynomial(
        train_rows,
        validation,
        layers,
        settings.mean_pooling,
        orders=orders,
        rank=rank,
        seed=settings.seed,
        progress=progress,
    )
    write_polynomial_artifact(
        output,
        head,
        **artifact_facts(manifest, settings),
        layers=layers,
        trained_on=manifest.generator,
    )
    matched = _matched(train_rows, validation, layers, reports[-1].parameters, settings.seed)
    text = _markdown(reports, order_costs(head.spec), matched)
    write_whole(output / TABLE_FILE, text.encode(), InputError)
    return reports


def _matched(
    train: FeatureSet,
    validation: FeatureSet,
    layers: Sequence[LayerSelection],
    parameters: int,
    seed: int,
) -> _Matched:
    """An MLP of one hidden layer with about as many parameters."""
    width = sum(layer.channels.size for layer in layers)
    hidden = max(1, round(parameters / (width + 3)))
    head = fit_head(train, layers, HeadConfig(hidden=(hidden,)), seed=seed)
    score = macro_f1_by_dataset(
        validation.labels,
        head_logits(head, gather(validation.pooled, layers)).argmax(axis=1),
        validation.datasets,
        validation.names,
    )
    weights = sum(dense.weight.size for dense in head)
    return _Matched(weights + sum(dense.bias.size for dense in head), weights, score)


def _markdown(reports: Sequence[OrderReport], costs: Sequence[int], matched: _Matched) -> str:
    found = [
        (str(report.order), report.parameters, cost, report.validation)
        for report, cost in zip(reports, costs, strict=True)
    ]
    found.append(("MLP", matched.parameters, matched.cost, matched.validation))
    rows = [
        [
            name,
            f"{parameters:,}",
            f"{cost:,}",
            *(f"{f1:.4f}" for f1 in (validation.mean, *validation.by_dataset.values())),
        ]
        for name, parameters, cost, validation in found
    ]
    header = "orders", "parameters", "multiply-adds", "mean", *reports[0].validation.by_dataset
    lines = [
        "# Training report",
        "",
        "Macro-F1 at one half on the validation rows, by which settings and epochs were chosen. An "
        "MLP of as many parameters, which was not chosen by them, stands beside. Multiply-adds are "
        "the head's, for one text.",
        "",
        *markdown_table(header, rows),
    ]
    return "\n".join(lines) + "\n"
