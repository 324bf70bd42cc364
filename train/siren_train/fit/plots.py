"""Pictures of a training run and of an evaluation, written as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib import pyplot

from siren_train.measure.evaluate import Evaluation, Scores
from siren_train.measure.metrics import calibration_bins, precision_recall
from siren_train.store.files import replaced

from .ablate import AblationResult
from .report import TrainingReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

matplotlib.use("Agg")  # draws to files, on machines without a screen too
matplotlib.rcParams["text.parse_math"] = False  # a $ in a category's name is a dollar

_MOST_CATEGORIES = 25
_DPI = 120


def plot_layers(report: TrainingReport, path: Path) -> None:
    """Draw each layer's probe macro-F1, the share of its channels that is read and its weight."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    layers = [layer.layer for layer in report.layers]
    for name in report.layers[0].by_dataset:
        scores = [layer.by_dataset[name] for layer in report.layers]
        left.plot(layers, scores, marker="o", markersize=3, linewidth=1, label=name)
    means = [layer.macro_f1 for layer in report.layers]
    left.plot(layers, means, marker="o", color="black", linewidth=2, label="mean")
    left.set(xlabel="layer", ylabel="validation macro-F1", title="Probe of each layer")
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    shares = [layer.selected / report.store.channels for layer in report.layers]
    right.bar(layers, shares, color="tab:blue", alpha=0.6, label="share of channels read")
    weights = [layer.weight for layer in report.layers]
    right.plot(layers, weights, marker="s", color="tab:orange", label="layer weight")
    right.set(xlabel="layer", ylim=(0, 1.05), title="What the head reads")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.set_xticks(layers[:: max(1, len(layers) // 14)])
    save_figure(figure, path)


def plot_ablation(results: Sequence[AblationResult], path: Path) -> None:
    """Draw each variant's mean macro-F1, grouped by the part that was changed."""
    figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.28 * len(results)), layout="constrained")
    colors = {group: f"C{i}" for i, group in enumerate(dict.fromkeys(r.group for r in results))}
    rows = list(results)[::-1]
    bars = axes.barh(
        range(len(rows)), [r.macro_f1 for r in rows], color=[colors[r.group] for r in rows]
    )
    axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
    axes.axvline(results[0].macro_f1, color="grey", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{r.group}: {r.name}" for r in rows], fontsize=8)
    axes.margins(y=0.01)
    axes.set(
        xlim=(min(r.macro_f1 for r in rows) - 0.05, max(r.macro_f1 for r in rows) + 0.02),
        xlabel="mean macro-F1 on the validation rows",
        title="What each part is worth",
    )
    save_figure(figure, path)


def plot_evaluation(scores: Scores, evaluation: Evaluation, folder: Path) -> None:
    """Draw precision-recall curves, score histograms, a reliability diagram, and verdicts."""
    _plot_precision_recall(scores, evaluation, folder / "precision_recall.png")
    _plot_histograms(scores, evaluation, folder / "scores.png")
    _plot_reliability(scores, evaluation, folder / "reliability.png")
    _plot_verdicts(scores, evaluation, folder / "verdicts.png")


def _plot_precision_recall(scores: Scores, evaluation: Evaluation, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(6, 5), layout="constrained")
    for name, metrics in evaluation.by_dataset.items():
        rows = scores.datasets == name
        if metrics.average_precision is None:
            continue
        precision, recall, _ = precision_recall(scores.harmful[rows], scores.scores[rows])
        (line,) = axes.plot(recall, precision, label=f"{name} ({metrics.average_precision:.3f})")
        if metrics.precision is not None and metrics.recall is not None:
            axes.plot([metrics.recall], [metrics.precision], "o", color=line.get_color())
    axes.set(
        xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01),
        title=f"Precision and recall; dots at threshold {evaluation.threshold:g}",
    )  # fmt: skip
    axes.legend(title="average precision", fontsize=8)
    save_figure(figure, path)


def _plot_histograms(scores: Scores, evaluation: Evaluation, path: Path) -> None:
    names = list(evaluation.by_dataset)
    figure, grid = pyplot.subplots(
        1, len(names), figsize=(4 * len(names), 3.5), squeeze=False, layout="constrained"
    )
    for axes, name in zip(grid[0], names, strict=True):
        rows = scores.datasets == name
        for harmful, color in ((False, "tab:blue"), (True, "tab:red")):
            axes.hist(
                scores.scores[rows & (scores.harmful == harmful)], bins=20, range=(0, 1),
                alpha=0.6, color=color, label="harmful" if harmful else "safe",
            )  # fmt: skip
        axes.axvline(evaluation.threshold, color="black", linestyle="--", linewidth=1)
        axes.set(title=name, xlabel="score", ylabel="rows")
        axes.legend(fontsize=8)
    save_figure(figure, path)


def _plot_reliability(scores: Scores, evaluation: Evaluation, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(5.5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
    for name, metrics in evaluation.by_dataset.items():
        rows = scores.datasets == name
        mean, share, _ = calibration_bins(scores.harmful[rows], scores.scores[rows])
        label = f"{name} (error {metrics.expected_calibration_error:.3f})"
        axes.plot(mean, share, marker="o", markersize=4, label=label)
    axes.set(xlabel="mean score of a bin", ylabel="share of harm in it", title="Reliability")
    axes.legend(fontsize=8)
    save_figure(figure, path)


def _plot_verdicts(scores: Scores, evaluation: Evaluation, path: Path) -> None:
    """Bars of verdicts in every category, the most frequent at the top."""
    keys = [
        f"{dataset}: {category or '(none)'}"
        for dataset, category in zip(scores.datasets, scores.categories, strict=True)
    ]
    names, group = np.unique(keys, return_inverse=True)
    order = np.argsort(-np.bincount(group))[:_MOST_CATEGORIES][::-1]
    verdicts = scores.scores >= evaluation.threshold
    outcomes = {
        "safe, passed": ~scores.harmful & ~verdicts,
        "harmful, flagged": scores.harmful & verdicts,
        "safe, flagged": ~scores.harmful & verdicts,
        "harmful, passed": scores.harmful & ~verdicts,
    }
    colors = ("tab:blue", "tab:green", "tab:orange", "tab:red")
    figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.3 * len(order)), layout="constrained")
    left = np.zeros(len(order))
    totals = np.bincount(group)[order]
    for (label, rows), color in zip(outcomes.items(), colors, strict=True):
        shares = np.bincount(group, rows, len(names))[order] / totals
        axes.barh(range(len(order)), shares, left=left, color=color, label=label)
        left += shares
    axes.set_yticks(
        range(len(order)), [f"{names[i]} ({n})" for i, n in zip(order, totals, strict=True)]
    )
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.01)
    axes.set(xlim=(0, 1), xlabel="share of rows", title="Verdicts by category (rows)")
    figure.legend(fontsize=8, ncols=4, loc="outside lower center")
    save_figure(figure, path)


def save_figure(figure: "Figure", path: Path) -> None:
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=_DPI)
    pyplot.close(figure)
