"""The picture of an evaluation among plain text."""

from pathlib import Path
from typing import Literal

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .diluted import FALSE_ALARMS, DilutedEvaluation, DilutedMetrics
from .figure import save_figure

_STYLES: dict[str, Literal["-", ":"]] = {"behind": "-", "middle": ":"}
_COLORS = {"beginning": "tab:grey", "windows": "tab:blue", "spans": "tab:green"}


def plot_diluted(evaluation: DilutedEvaluation, path: Path) -> None:
    """Draw AUROC and recall over the tokens of plain text, a column for each data set.

    Raises:
        InputError: the file cannot be written.
    """
    datasets = list(dict.fromkeys(result.dataset for result in evaluation.results))
    figure, grid = pyplot.subplots(
        2, len(datasets), figsize=(1 + 4 * len(datasets), 7), squeeze=False, sharex=True,
        sharey="row", layout="constrained",
    )  # fmt: skip
    for column, dataset in enumerate(datasets):
        mine = [result for result in evaluation.results if result.dataset == dataset]
        for way, color in _COLORS.items():
            for place, style in _STYLES.items():
                line = [r for r in mine if r.way == way and r.place in ("alone", place)]
                _draw(grid[0, column], line, "auroc", color, style)
                _draw(grid[1, column], line, "recall_at_false_alarms", color, style)
        grid[0, column].set(title=dataset)
        grid[1, column].set(xlabel="tokens of plain text")
        ticks = sorted({result.tokens for result in mine})
        for axes in grid[:, column]:
            axes.set_xscale("symlog", linthresh=50)
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.set_ylim(0, 1.02)
            axes.grid(alpha=0.3)
    grid[0, 0].set(ylabel="AUROC")
    grid[1, 0].set(ylabel=f"recall at {FALSE_ALARMS:.0%} false alarms")
    handles = [Line2D([], [], color=color, label=way) for way, color in _COLORS.items()]
    handles += [
        Line2D([], [], color="black", linestyle=_STYLES[place], label=label)
        for place, label in (("behind", "row behind it"), ("middle", "row in its middle"))
    ]
    grid[1, -1].legend(handles=handles, fontsize=8, loc="lower left")
    save_figure(figure, path)


def _draw(
    axes: Axes, line: list[DilutedMetrics], what: str, color: str, style: Literal["-", ":"]
) -> None:
    points = [(result.tokens, getattr(result, what)) for result in line]
    known = [(tokens, value) for tokens, value in points if value is not None]
    if known:
        tokens, values = zip(*known, strict=True)
        axes.plot(tokens, values, color=color, linestyle=style, marker="o", markersize=4)
