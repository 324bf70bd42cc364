"""`siren score`: score texts, or trajectories of agents, from arguments, a file or a pipe."""

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import typer

from siren_runtime.backends.verdicts import deciding
from siren_runtime.errors import InputError, SirenError
from siren_runtime.guard import Guard
from siren_runtime.scoring.engines import BackendName
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.text.lines import InputFormat, Line, read_texts
from siren_runtime.text.reading import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_TOKENS,
    LongText,
    Unreadable,
)

from .console import EXIT_FAILED, need_engine, one_line, refuse_options, report, standard_input
from .options import MaxBytes, MaxTokens, Spans

need_engine()

OutputFormat = Literal["table", "jsonl"]

Row = tuple[Line, ScoreResult | SirenError]

_JSONL_SUFFIXES, _TABLES = (".jsonl", ".json", ".ndjson"), (".csv", ".tsv", ".parquet")
_OUTPUT_KEYS = {"line", "error", *(field.name for field in fields(ScoreResult))}
_VERDICTS = {
    True: ("harmful", "bold red"),
    False: ("safe", "green"),
    None: ("unreadable", "yellow"),
}

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


def _check_threshold(threshold: float | None) -> float | None:
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise typer.BadParameter(f"{threshold} does not lie from 0 to 1")
    return threshold


def _check_keep(keep: list[str] | None) -> list[str] | None:
    for key in keep or []:
        if key in _OUTPUT_KEYS:
            raise typer.BadParameter(f"the output has a key {key!r} of its own")
    return keep


@app.command(
    epilog="Example: tail -f chat.jsonl | siren score engines/minilm/bundle --threshold 0.8"
)
def score(
    context: typer.Context,
    bundle: Annotated[
        str,
        typer.Argument(
            help="Folder of a bundle, a shipped guard's name (minilm), or a hub repository id."
        ),
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts to score.")
    ] = None,
    input: Annotated[
        typer.FileBinaryRead | None,
        typer.Option("--input", "-i", help="File of texts, - for standard input."),
    ] = None,
    trajectories: Annotated[
        typer.FileBinaryRead | None,
        typer.Option(
            help="File of what agents did, - for standard input, for the guard of a trajectory "
            'head: JSON objects with "messages" and "tools", as an OpenAI client has them.'
        ),
    ] = None,
    input_format: Annotated[
        InputFormat,
        typer.Option(help="JSON or plain lines; auto goes by file name and first text."),
    ] = "auto",
    format: Annotated[
        OutputFormat | None,
        typer.Option(help="Default: table in a terminal, jsonl elsewhere."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(callback=_check_threshold, help="Harmful from this score; default: bundle's."),
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Add the features to the JSON.")
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            callback=_check_keep,
            help="A key of JSON rows that the output keeps, such as label; may be given several "
            "times. Other keys than these and those named above are errors.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Texts scored together at most, before they are shown.")
    ] = 64,
    backend: Annotated[BackendName, typer.Option(help="What runs the engine.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all.")] = None,
    long_text: Annotated[
        LongText,
        typer.Option(
            help="How a text over the guard's max_length is read: in windows, of which the highest "
            "score counts, only its beginning, or not at all. A trajectory loses its middle, or is "
            "not read at all (refuse)."
        ),
    ] = "windows",
    spans: Spans = None,
    max_tokens: MaxTokens = DEFAULT_MAX_TOKENS,
    max_bytes: MaxBytes = DEFAULT_MAX_BYTES,
    order: Annotated[
        int | None,
        typer.Option(min=1, help="Of a polynomial head, the order that decides; default: all."),
    ] = None,
    exits: Annotated[
        bool,
        typer.Option(
            "--exits/--no-exits",
            help="Let exits decide clear texts, where siren calibrate --cascade chose bounds.",
        ),
    ] = True,
    unreadable: Annotated[
        Unreadable,
        typer.Option(
            help="What a text gets that is mostly unknown to the tokenizer and whose score is low: "
            "an error, or a row that is neither harmful nor safe."
        ),
    ] = "refuse",
) -> None:
    """Score texts: arguments, lines of a file, or standard input; or trajectories.

    A line is a plain text, or a JSON object with "text", or "prompt" and/or "response", and an
    optional "id" that the output keeps. A JSON array of such objects, or of strings, is taken
    too; its elements count as lines. What cannot be scored is reported with its number on
    standard error, and with an "error" in its place of the output; scoring goes on, and the exit
    status is 1 at the end.
    """
    if (features or keep) and format == "table":
        name = "--features" if features else "--keep"
        raise typer.BadParameter(f"a table cannot hold {name}; use --format jsonl")
    if trajectories is not None:
        if texts or input is not None or order is not None or spans:
            raise typer.BadParameter("--trajectories has no TEXT, --input, --order and --spans")
        of_texts = ["input_format"] if long_text == "refuse" else ["input_format", "long_text"]
        refuse_options(context, of_texts, "texts")
        groups: Iterable[list[Line]] = read_texts(
            _opened(trajectories), "jsonl", keep or [], trajectories=True
        )
    else:
        groups = _groups(texts or [], input, input_format, keep or [])
    plain = not features and not keep
    as_table = format == "table" or (format is None and plain and sys.stdout.isatty())
    guard = Guard.load(
        bundle,
        backend=backend,
        threads=threads,
        long_text=long_text,
        spans=spans,
        max_tokens_per_text=max_tokens,
        max_bytes_per_text=max_bytes,
        unreadable=unreadable,
        exits=exits,
    )
    write = _write_table if as_table else _write_jsonl
    count, failed, told = 0, 0, set[str]()
    for lines in _windows(groups, batch_size):
        if trajectories is not None:
            given = [line.trajectory for line in lines if line.trajectory is not None]
            results = guard.score_each_trajectory(given, threshold, features)
        else:
            pieces = [line.pair or line.text for line in lines if line.text is not None]
            results = guard.score_each(pieces, threshold, features, order=order)
        rows = _with_errors(lines, results)
        write(rows, count)
        errors = [(line, result) for line, result in rows if isinstance(result, SirenError)]
        for line, error in errors:
            report(f"line {line.number}: {error}")
        _tell_unread(rows, told)
        count, failed = count + len(lines), failed + len(errors)
        if trajectories is not None:
            report(f"{count} trajectories read")
    if failed:
        what = "texts" if trajectories is None else "trajectories"
        report(f"error: {failed} of {count} {what} could not be scored")
        raise typer.Exit(EXIT_FAILED)


def _tell_unread(rows: Sequence[Row], told: set[str]) -> None:
    """Say of each place of a trajectory that is not read, once, that it is not."""
    for line, result in rows:
        new = [] if isinstance(result, SirenError) else [p for p in result.unread if p not in told]
        if new:
            report(f"line {line.number}: scored without {', '.join(new)}, which is not read")
        told.update(new)


def _with_errors(lines: Sequence[Line], results: Sequence[ScoreResult | SirenError]) -> list[Row]:
    """Each line with its result, or why it has none."""
    of_good = iter(results)
    return [
        (line, InputError(_reason(line)) if line.text is None else next(of_good)) for line in lines
    ]


def _reason(line: Line) -> str:
    if line.unknown_key is None:
        return str(line.error)
    return f"{line.error}; to pass it through, --keep {line.unknown_key}"


def _groups(
    texts: list[str],
    input: BinaryIO | None,
    input_format: InputFormat,
    keep: Collection[str],
) -> Iterable[list[Line]]:
    if texts and input is not None:
        raise typer.BadParameter("pass either TEXT or --input, not both")
    if keep and (texts or input_format == "lines"):
        raise typer.BadParameter("--keep is for JSON rows; plain texts have no keys")
    if texts:
        return [[Line(number, text) for number, text in enumerate(texts, start=1)]]
    if input is None and (sys.stdin is None or sys.stdin.isatty()):
        raise typer.BadParameter("nothing to score: pass TEXT, --input FILE, or pipe texts in")
    name = Path(str(getattr(input, "name", ""))).name
    if input_format == "auto" and name.lower().endswith(_TABLES):
        raise typer.BadParameter(
            f"{name} is a table: its lines are not its texts; write JSON lines, each "
            '{"text": "..."}, or say --input-format lines to have each line scored as it is'
        )
    if input_format == "auto" and name.lower().endswith(_JSONL_SUFFIXES):
        input_format = "jsonl"
    return read_texts(_opened(input), input_format, keep)


def _opened(input: BinaryIO | None) -> BinaryIO:
    """A file, or standard input, made to wait."""
    if input is None or getattr(input, "name", None) == "<stdin>":
        return standard_input()
    return input


def _windows(groups: Iterable[list[Line]], size: int) -> Iterator[list[Line]]:
    for group in groups:
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _write_jsonl(rows: Sequence[Row], _: int) -> None:
    for line, result in rows:
        row: dict[str, Any] = {"line": line.number} if line.id is None else {"id": line.id}
        if isinstance(result, SirenError):
            row["error"] = str(result)
        else:
            row |= result.to_dict()
            if result.features is not None:
                row["features"] = result.features.tolist()
        encoded = json.dumps({**row, **line.kept}, ensure_ascii=False, separators=(",", ":"))
        sys.stdout.buffer.write(encoded.encode() + b"\n")
    sys.stdout.buffer.flush()


def _decided_by(result: ScoreResult, text: str) -> tuple[str, str, str]:
    """The score that decided, the part of the text that it is of, and what stands there."""
    by = deciding(result.spans) or result
    if by.span is None:
        return f"{by.score:.4f}", "all" if result.omitted is None else "ends", text
    return f"{by.score:.4f}", f"{by.span[0]}-{by.span[1]}", text[slice(*by.span)]


def _write_table(rows: Sequence[Row], shown: int) -> None:
    """Show rows in columns of fixed width, so that tables of successive windows read as one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, show_header=shown == 0, padding=(0, 1))
    table.add_column("line", width=8, no_wrap=True)
    table.add_column("score", width=6, justify="right")
    table.add_column("verdict", width=10)
    table.add_column("part", width=14, no_wrap=True)
    table.add_column("text", ratio=1, no_wrap=True, overflow="ellipsis")
    for line, result in rows:
        if isinstance(result, SirenError):
            score, verdict, text, style, part = "", "error", str(result), "yellow", ""
        else:
            verdict, style = _VERDICTS[result.is_harmful]
            score, part, text = _decided_by(result, line.text or "")
        table.add_row(
            Text(one_line(str(line.number if line.id is None else line.id))),
            Text(score, style),
            Text(verdict, style),
            Text(part, "" if part in ("", "all") else "yellow"),
            Text(one_line(text)),
        )
    Console().print(table)
