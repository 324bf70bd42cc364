"""The picture of a streaming evaluation: scores around the onset of harm, and alarms after it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from numpy.typing import NDArray

from .figure import save_figure
from .traces import Trace

_BEFORE, _AFTER, _STEP = 128, 384, 4  # tokens
_GRID = np.arange(-_BEFORE, _AFTER + 1, _STEP)
_LEAST_SHARE = 0.25  # of the streams that a mean is drawn of


def plot_onset(traces: Sequence[Trace], threshold: float, path: Path) -> None:
    """Draw the mean score around the onset of harm, and the share of streams with an alarm by then.

    Safe streams have no onset, so they are laid at the median onset of the harmful ones. A mean is
    drawn only where a quarter of the streams have a score.

    Raises:
        InputError: the file cannot be written.
    """
    harmful: list[tuple[Trace, int]] = []
    lengths: list[int] = []
    for trace in traces:
        if trace.row.span is not None:
            onset, end = (trace.tokens_at(character) for character in trace.row.span)
            harmful.append((trace, onset))
            lengths.append(end - onset)
    middle = int(np.median([onset for _, onset in harmful])) if harmful else _BEFORE
    safe = [(trace, middle) for trace in traces if trace.row.span is None]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, color, group in (("harmful", "tab:red", harmful), ("safe", "tab:blue", safe)):
        if group:
            _draw(left, right, group, threshold, f"{name} ({len(group)})", color)
    left.axhline(threshold, color="grey", linestyle=":", linewidth=1)
    for axes in (left, right):
        axes.axvline(0, color="black", linewidth=0.8)
        if lengths:
            axes.axvspan(0, float(np.median(lengths)), color="tab:red", alpha=0.07)
        axes.set(xlabel="tokens since the onset of harm", xlim=(_GRID[0], _GRID[-1]))
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
    left.set(ylabel="score", title="Mean score and quartiles")
    right.set(ylabel="share of streams", title="Alarm raised by then")
    right.legend(fontsize=8, loc="upper left")
    figure.suptitle("Shaded: the median harmful span", fontsize=9)
    save_figure(figure, path)


def _draw(
    left: Axes,
    right: Axes,
    group: Sequence[tuple[Trace, int]],
    threshold: float,
    label: str,
    color: str,
) -> None:
    """Draw traces from their onsets on: scores to the left, alarms to the right."""
    scores = np.array([_scores(trace, onset + _GRID) for trace, onset in group])
    drawn = np.isfinite(scores).mean(axis=0) >= _LEAST_SHARE
    if drawn.any():  # a stream of one piece has one score
        tokens, seen = _GRID[drawn], scores[:, drawn]
        left.plot(tokens, np.nanmean(seen, axis=0), color=color, label=label)
        low, high = np.nanquantile(seen, [0.25, 0.75], axis=0)
        left.fill_between(tokens, low, high, color=color, alpha=0.15, linewidth=0)
    alarms = np.array([_alarm(trace, onset, threshold) for trace, onset in group])
    right.plot(_GRID, [np.mean(alarms <= token) for token in _GRID], color=color, label=label)


def _scores(trace: Trace, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the last score by each of `tokens`: NaN before the first and after the end."""
    scores = np.array([trace.score_at(int(token)) for token in tokens])
    scores[tokens > trace.tokens[-1]] = np.nan
    return scores


def _alarm(trace: Trace, onset: int, threshold: float) -> float:
    """Return how many tokens after the onset the alarm comes: infinite if it never does."""
    alarm = trace.alarm(threshold)
    return float("inf") if alarm is None else float(trace.tokens[alarm] - onset)
