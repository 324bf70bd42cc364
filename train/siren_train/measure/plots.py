"""Pictures of an evaluation, written as PNG."""

from pathlib import Path

import numpy as np
from matplotlib import pyplot

from .categories import CategoryEvaluation, CategoryScores
from .evaluate import Evaluation, Scores
from .evaluation_tables import thresholds_of
from .figure import save_figure
from .metrics import calibration_bins, precision_recall

_MOST_CATEGORIES = 25


def plot_evaluation(scores: Scores, evaluation: Evaluation, folder: Path) -> None:
    """Draw pictures into `folder`.

    They are precision-recall curves, histograms of the scores, a reliability diagram, and the
    verdicts in each category; and of each head that has categories, their precision-recall curves,
    reliability, and F1.

    Raises:
        InputError: a file cannot be written.
    """
    _plot_precision_recall(scores, evaluation, folder / "precision_recall.png")
    _plot_histograms(scores, evaluation, folder / "scores.png")
    _plot_reliability(scores, evaluation, folder / "reliability.png")
    _plot_verdicts(scores, evaluation, folder / "verdicts.png")
    for found, measured in zip(scores.heads, evaluation.heads, strict=True):
        _plot_categories(found, measured, folder / f"categories.{found.head}.png")


def _plot_precision_recall(scores: Scores, evaluation: Evaluation, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(6, 5), layout="constrained")
    for name, metrics in evaluation.by_dataset.items():
        rows = scores.datasets == name
        if metrics.average_precision is None:
            continue
        precision, recall, _ = precision_recall(scores.harmful[rows], scores.risks[rows])
        (line,) = axes.plot(recall, precision, label=f"{name} ({metrics.average_precision:.3f})")
        if metrics.precision is not None and metrics.recall is not None:
            axes.plot([metrics.recall], [metrics.precision], "o", color=line.get_color())
    axes.set(
        xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01),
        title=f"Precision and recall; dots: {thresholds_of(evaluation)}",
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
                scores.risks[rows & (scores.harmful == harmful)], bins=20, range=(0, 1),
                alpha=0.6, color=color, label="harmful" if harmful else "safe",
            )  # fmt: skip
        axes.axvline(evaluation.threshold, color="black", linestyle="--", linewidth=1)
        axes.set(title=name, xlabel="score; of labels, risk", ylabel="rows")
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
    """Draw what became of the rows of each category, the largest category at the top."""
    keys = [
        f"{dataset}: {category or '(none)'}"
        for dataset, category in zip(scores.datasets, scores.categories, strict=True)
    ]
    names, group = np.unique(keys, return_inverse=True)
    order = np.argsort(-np.bincount(group))[:_MOST_CATEGORIES][::-1]
    outcomes = {
        "safe, passed": ~scores.harmful & ~scores.flagged,
        "harmful, flagged": scores.harmful & scores.flagged,
        "safe, flagged": ~scores.harmful & scores.flagged,
        "harmful, passed": scores.harmful & ~scores.flagged,
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


def _plot_categories(scores: CategoryScores, evaluation: CategoryEvaluation, path: Path) -> None:
    """Draw each category's precision against recall, its reliability, and its F1."""
    figure, (curves, honest, bars) = pyplot.subplots(1, 3, figsize=(15, 5), layout="constrained")
    honest.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for place, (name, metrics) in enumerate(evaluation.by_category.items()):
        truth, probabilities = scores.truth[:, place], scores.probabilities[:, place]
        if metrics.average_precision is None:
            continue
        precision, recall, _ = precision_recall(truth, probabilities)
        (line,) = curves.plot(recall, precision, label=f"{name} ({metrics.average_precision:.2f})")
        if metrics.precision is not None and metrics.recall is not None:
            curves.plot([metrics.recall], [metrics.precision], "o", color=line.get_color())
        mean, share, _ = calibration_bins(truth, probabilities)
        honest.plot(mean, share, marker="o", markersize=4, color=line.get_color(), label=name)
    curves.set(
        xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01),
        title=f"Categories of {scores.head}; dots as decided",
    )  # fmt: skip
    curves.legend(title="average precision", fontsize=8)
    honest.set(xlabel="mean probability of a bin", ylabel="share in it", title="Reliability")
    names = [f"{name} ({m.harmful})" for name, m in evaluation.by_category.items()]
    bars.barh(names, [m.f1 for m in evaluation.by_category.values()])
    bars.invert_yaxis()
    bars.set(xlim=(0, 1), xlabel="F1", title="F1 by category (rows of it)")
    save_figure(figure, path)
