"""What exits save in streams: the time of streamed texts with and without them, in turns."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from siren_bench.records.record import markdown_table
from siren_bench.speed.cascade import by_depth, exits_in_turns, paired_times, part_of
from siren_bench.subjects.corpus import Row
from siren_runtime import Guard, StreamResult
from siren_runtime.bundle.progress import Progress


def measure_stream_cascade(
    exits: Guard,
    whole: Guard,
    rows: Sequence[Row],
    sizes: Sequence[int],
    rounds: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Stream all rows in pieces of so many words, `rounds` times by each guard in turns.

    Args:
        exits, whole: of one bundle, opened with exits and without, to stream.
    """
    blocks = whole.manifest.backbone.blocks_kept
    results = []
    for number, size in enumerate(sizes):
        texts = [_pieces(row.text, size) for row in rows]
        ours, theirs, compared = exits_in_turns(
            partial(_streamed, exits, texts),
            partial(_streamed, whole, texts),
            blocks,
            rounds,
            part_of(progress, number, len(sizes)),
        )
        tokens = sum(result.computed for result in theirs)
        counts = {"words": size, "rows": len(rows), "verdicts": len(ours), "tokens": tokens}
        results.append({**counts, **compared})
    return results


def stream_cascade_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the medians as Markdown."""
    header = [
        "words of a piece", "whole guard, ms a token", "with exits, ms a token", "time",
        "verdicts by depth", "changed verdicts",
    ]  # fmt: skip
    rows = [
        [
            str(result["words"]),
            *paired_times(result, result["tokens"]),
            by_depth(result),
            f"{result['changed_verdicts']} of {result['verdicts']}",
        ]
        for result in results
    ]
    return markdown_table(header, rows)


def _pieces(text: str, size: int) -> list[str]:
    words = text.split(" ")
    parts = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    return [parts[0], *(f" {part}" for part in parts[1:])]


def _streamed(guard: Guard, texts: Sequence[Sequence[str]]) -> list[StreamResult]:
    """The verdict after each piece of each text."""
    results = []
    for pieces in texts:
        with guard.stream() as stream:
            results += [stream.feed(piece) for piece in pieces]
    return results
