"""Pictures of a training run, written as PNG."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot

from siren_train.measure.figure import save_figure

from .ablate import AblationResult
from .report import TrainingReport


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
