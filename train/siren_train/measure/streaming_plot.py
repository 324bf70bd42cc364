"""The picture of a streaming evaluation: scores around the onset of harm, and alarms after it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siren_train.fit.plots import save_figure

from .streaming_evaluation import Trace

_BEFORE, _AFTER, _STEP = 128, 384, 4  # tokens
_LEAST_SHARE = 0.25  # of the streams that a mean is drawn of


def plot_onset(traces: Sequence[Trace], threshold: float, path: Path) -> None:
    """Draw the mean score around the onset, and the share of streams with an alarm by then.

    Safe streams, which have no onset, are laid at the median onset of the harmful ones. Where
    fewer than a quarter of the streams are left, nothing is drawn.
    """
    from matplotlib import pyplot

    spans = [(t, t.row.span) for t in traces if t.row.span is not None]
    onsets = [t.tokens_at(span[0]) for t, span in spans]
    ends = [t.tokens_at(span[1]) - onset for (t, span), onset in zip(spans, onsets, strict=True)]
    safe = [trace for trace in traces if trace.row.span is None]
    middle = int(np.median(onsets)) if onsets else _BEFORE
    grid = np.arange(-_BEFORE, _AFTER + 1, _STEP)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    harmful = [(trace, onset) for (trace, _), onset in zip(spans, onsets, strict=True)]
    for label, color, group in (
        (f"harmful ({len(spans)})", "tab:red", harmful),
        (f"safe ({len(safe)})", "tab:blue", [(trace, middle) for trace in safe]),
    ):
        if not group:
            continue
        scores = np.array([_scores(trace, onset + grid) for trace, onset in group])
        drawn = np.isfinite(scores).mean(axis=0) >= _LEAST_SHARE
        x, seen = grid[drawn], scores[:, drawn]
        left.plot(x, np.nanmean(seen, axis=0), color=color, label=label)
        low, high = np.nanquantile(seen, [0.25, 0.75], axis=0)
        left.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        alarms = [_alarm(trace, onset, threshold) for trace, onset in group]
        right.plot(
            grid, [np.mean([a <= g for a in alarms]) for g in grid], color=color, label=label
        )
    left.axhline(threshold, color="grey", linestyle=":", linewidth=1)
    for axes in (left, right):
        axes.axvline(0, color="black", linewidth=0.8)
        if ends:
            axes.axvspan(0, float(np.median(ends)), color="tab:red", alpha=0.07)
        axes.set(xlabel="tokens since the onset of harm", xlim=(grid[0], grid[-1]))
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
    left.set(ylabel="score", title="Mean score and quartiles")
    right.set(ylabel="share of streams", title=f"Alarm raised, threshold {threshold:g}")
    left.legend(fontsize=8, loc="upper right")
    figure.suptitle("Shaded: the median harmful span", fontsize=9)
    save_figure(figure, path)


def _scores(trace: Trace, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """The scores by those tokens; NaN before the first and after the last."""
    scores = np.array([trace.score_at(int(token)) for token in tokens])
    scores[tokens > trace.tokens[-1]] = np.nan
    return scores


def _alarm(trace: Trace, onset: int, threshold: float) -> float:
    """The token of the alarm, from the onset; infinite without one."""
    alarm = trace.alarm(threshold)
    return float("inf") if alarm is None else float(trace.tokens[alarm] - onset)
