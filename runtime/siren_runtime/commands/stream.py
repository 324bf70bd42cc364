"""`siren stream`: score standard input while it grows."""

import codecs
import sys
from collections.abc import Iterator
from typing import Annotated, BinaryIO, Literal

import typer

from siren_runtime.backends.verdicts import reason_of
from siren_runtime.guard import Guard
from siren_runtime.scoring.engines import BackendName
from siren_runtime.streaming.aggregation import AggregationName
from siren_runtime.streaming.decision import Decision, Schedule
from siren_runtime.streaming.handles import Stream
from siren_runtime.streaming.result import StreamResult
from siren_runtime.text.reading import DEFAULT_MAX_BYTES, DEFAULT_MAX_TOKENS

from .colors import color
from .console import (
    EXIT_STOPPED,
    need_engine,
    printable,
    report,
    standard_input,
    warnings_reported,
    write_json_line,
)
from .options import Spans

need_engine()

OutputFormat = Literal["color", "jsonl"]

_READ_BYTES = 1 << 14  # no more bytes than a piece may have tokens
_REPLACEMENT = "\ufffd"
_PIECE_BYTES = _READ_BYTES * len(_REPLACEMENT.encode())  # of a piece at most, as it is fed

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command(epilog="Example: ollama run qwen3 'Tell me a story' | siren stream guards/qwen3")
def stream(
    bundle: Annotated[
        str,
        typer.Argument(
            help="Folder of a bundle, a shipped guard's name (minilm), or a hub repository id."
        ),
    ],
    prompt: Annotated[
        str | None, typer.Option(help="What the text answers; it is scored with it.")
    ] = None,
    response_only: Annotated[
        bool, typer.Option("--response-only", help="Read the prompt, but keep it out of the mean.")
    ] = False,
    aggregation: Annotated[
        AggregationName, typer.Option(help="Mean over all tokens, the last ones, or moving.")
    ] = "mean",
    span: Annotated[int, typer.Option(min=1, help="Tokens of window and ema.")] = 64,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Harmful from this score; default: bundle's.")
    ] = None,
    stop_at: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with status 3 once a token's score reaches this."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens held before text slides out; default: the context.")
    ] = None,
    exits: Annotated[
        bool,
        typer.Option(
            "--exits/--no-exits",
            help="Let exits decide while the text is clear, in a bundle that has some.",
        ),
    ] = True,
    format: Annotated[
        OutputFormat | None, typer.Option(help="Default: color in a terminal, jsonl elsewhere.")
    ] = None,
    backend: Annotated[BackendName, typer.Option(help="What runs the engine.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all.")] = None,
    spans: Spans = None,
    max_prompt_tokens: Annotated[
        int, typer.Option(min=_READ_BYTES, help="Tokens of the prompt; a larger one is an error.")
    ] = DEFAULT_MAX_TOKENS,
    max_bytes: Annotated[
        int, typer.Option(min=_PIECE_BYTES, help="Bytes of the prompt; a larger one is an error.")
    ] = DEFAULT_MAX_BYTES,
) -> None:
    """Score standard input as it comes: the text so far, at each piece that arrives.

    In a terminal the text is shown coloured by the score at each token, from green to red;
    elsewhere each update is a JSON line. The exit status is 3 if --stop-at stopped it. Bytes that
    are not UTF-8 are read as U+FFFD; the first of them is reported on standard error.
    """
    source = standard_input()
    if sys.stdin.isatty():
        report("reading from the terminal; end with Ctrl-D")
    guard = Guard.load(
        bundle,
        backend=backend,
        threads=threads,
        streaming=True,
        exits=exits,
        spans=spans,
        max_tokens_per_text=max_prompt_tokens,
        max_bytes_per_text=max_bytes,
    )
    colored = format == "color" or (format is None and sys.stdout.isatty())
    stop = () if stop_at is None else (Schedule(((0, stop_at),)),)
    with warnings_reported():
        session = guard.stream(
            prompt,
            response_only=response_only,
            aggregation=aggregation,
            span=span,
            threshold=threshold,
            rules=(*stop, *guard.tiers_of(prompt)),
            max_tokens=max_tokens,
        )
    result: StreamResult | None = None
    stopped: Decision | None = None
    with session:
        show = _Colored(session) if colored else _write_json
        for piece in _pieces(source):
            result = session.feed(piece)
            show(result)
            stopped = next((d for d in result.decisions if d.rule in map(str, stop)), None)
            if stopped is not None:
                break
        if result is not None and stopped is None:
            before, result = result, session.feed("", last=True)
            if result.risk != before.risk:  # by what the end of the text completes
                show(result)
    if colored and result is not None:
        sys.stdout.write("\n")
        sys.stdout.flush()
        verdict = {True: "harmful", False: "safe", None: "unreadable"}[result.is_harmful]
        tokens = f"{result.tokens} tokens{', some of which slid out' if result.slid else ''}"
        report(f"{verdict}: {reason_of(result.heads)} after {tokens}")
    if stopped is not None:
        report(f"stopped: score {stopped.score:.4f} at token {stopped.token}")
        raise typer.Exit(EXIT_STOPPED)


def _pieces(source: BinaryIO) -> Iterator[str]:
    """Yield text as it arrives; a character that is cut waits for its rest.

    Bytes that are not UTF-8 become U+FFFD, and the first of them is reported.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    read, told, ended = 0, False, False
    while not ended:
        data = source.read1(_READ_BYTES)  # type: ignore[attr-defined]  # buffered readers have it
        ended = not data
        waiting = decoder.getstate()[0]
        text = decoder.decode(data, final=ended)
        if not told and _REPLACEMENT in text:  # which the text may hold itself
            told = _report_bytes(waiting + data, read - len(waiting), final=ended)
        read += len(data)
        if text:
            yield text


def _report_bytes(data: bytes, start: int, *, final: bool) -> bool:
    """Report the first byte that is not UTF-8; `start` is where `data` lies in the input."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final=final)
    except UnicodeDecodeError as error:
        report(
            f"warning: the input is not UTF-8: byte {start + error.start} is "
            f"0x{data[error.start]:02x}; such bytes are read as {_REPLACEMENT}"
        )
        return True
    return False


def _write_json(result: StreamResult) -> None:
    write_json_line(result.to_dict())


class _Colored:
    """Shows the text of each token once, in the colour of its score when it was read."""

    def __init__(self, session: Stream) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._session = session
        self._shown = 0  # characters of cleaned text

    def __call__(self, result: StreamResult) -> None:
        from rich.text import Text

        line = Text()
        for token in self._session.scores:
            if token.end <= self._shown:
                continue
            if self._shown > 0:
                line.append(printable(token.space))
            text = token.text[max(self._shown - token.start, 0) :]
            line.append(printable(text), color(token.score))
            self._shown = token.end
        self._console.print(line, end="", soft_wrap=True)
