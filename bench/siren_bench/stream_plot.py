"""The long stream as a picture: time and memory over tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_long_stream(samples: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Draw cumulative seconds, and memory in GB (10^9 bytes), over the tokens of a stream."""
    from matplotlib.figure import Figure

    tokens = [sample["tokens"] for sample in samples]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    time_axes.plot(tokens, [sample["seconds"] for sample in samples], color="tab:blue")
    time_axes.set(xlabel="tokens", ylabel="seconds since the start", title="time")
    for key, label in (
        ("resident_bytes", "process, resident"),
        ("stream_bytes", "the stream: cache and rows"),
    ):
        memory_axes.plot(tokens, [sample[key] / 1e9 for sample in samples], label=label)
    memory_axes.set(xlabel="tokens", ylabel="GB", title="memory")
    for axes in (time_axes, memory_axes):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    memory_axes.legend(frameon=False)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
