"""`siren bench stream-data`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from siren_bench.subjects.corpus import load_corpus
from siren_bench.subjects.stream_data import make_streams
from siren_runtime.commands.console import report


def stream_data(
    corpus: Annotated[
        list[Path], typer.Argument(help="JSON lines with label 0 or 1.", exists=True)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .jsonl file to write.")],
    split: Annotated[str, typer.Option(help='Only rows of this "split".')] = "test",
    streams: Annotated[
        int, typer.Option(min=1, help="Harmful streams; there are as many safe ones.")
    ] = 64,
    lead_words: Annotated[int, typer.Option(min=2, help="Before harm, at most.")] = 80,
    harm_words: Annotated[int, typer.Option(min=1, help="Of the harmful passage, at least.")] = 40,
    tail_words: Annotated[int, typer.Option(min=1, help="After harm.")] = 220,
    seed: Annotated[int, typer.Option(help="Another one makes other streams.")] = 0,
) -> None:
    """Make responses that turn harmful and back, for siren evaluate --streaming."""
    rows = load_corpus(corpus, split=split)
    examples = make_streams(
        rows,
        count=streams,
        lead_words=lead_words,
        harm_words=harm_words,
        tail_words=tail_words,
        split=split,
        seed=seed,
    )
    lines = [json.dumps(example.to_dict(), ensure_ascii=False) + "\n" for example in examples]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(lines), encoding="utf-8")
    report(f"{output}: {len(examples)} streams")
