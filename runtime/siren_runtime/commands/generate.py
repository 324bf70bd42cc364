"""`siren generate`: text from a grafted model, judged by the pass that makes it."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from siren_runtime.errors import InputError
from siren_runtime.generation.generation import Generation, Piece
from siren_runtime.generation.generator import GuardedGenerator
from siren_runtime.generation.sampling import Sampling
from siren_runtime.streaming.aggregation import AggregationName

from .colors import color
from .console import EXIT_STOPPED, need, printable, report, standard_input, write_json_line
from .options import Spans

need("onnxruntime_genai")

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command(epilog="Example: siren generate smollm2-guarded 'How do I bake bread?'")
def generate(
    folder: Annotated[Path, typer.Argument(help="A folder that siren graft made.")],
    prompt: Annotated[
        str | None, typer.Argument(help="What a user asks; default: standard input.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    chat: Annotated[bool, typer.Option(help="Put the prompt in the model's chat template.")] = True,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of the response, at most.")] = 256,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 takes the likeliest token; default: folder's.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Share drawn from.")] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="How many are drawn from; 0 is from all.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1, tokens that occurred are less likely.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=-(2**31), max=2**31 - 1, help="Of the draws.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Harmful from this score; default: folder's.")
    ] = None,
    aggregation: Annotated[
        AggregationName, typer.Option(help="Mean over all tokens, the last ones, or moving.")
    ] = "mean",
    span: Annotated[int, typer.Option(min=1, help="Tokens of window and ema.")] = 64,
    every: Annotated[int, typer.Option(min=1, help="Tokens that the head reads at once.")] = 1,
    spans: Spans = None,
    holdback: Annotated[
        int, typer.Option(min=0, help="Tokens that must pass before a piece is shown.")
    ] = 0,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Generate once more without the guard, and time both."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Write a JSON line a token.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all.")] = None,
) -> None:
    """Generate a response and stop before the token that makes it harmful.

    The prompt is judged before the first token is chosen. In a terminal the text is coloured by
    the score at each token, from green to red. The exit status is 3 where the guard stopped it.
    """
    if prompt is None:
        prompt = _decoded(standard_input().read())
    if system and not chat:
        raise typer.BadParameter("--system goes with the chat template, not with --no-chat")
    sampling = Sampling(temperature, top_p, top_k, repetition_penalty, seed)
    generator = GuardedGenerator.load(folder, threads=threads, spans=spans)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    asked = messages if chat else prompt
    if compare:  # the first passes of either would take longer
        list(generator.generate(asked, chat=chat, max_tokens=2, sampling=sampling))
        generator.time_unguarded(asked, chat, 2, sampling)
    started = time.perf_counter()
    generation = generator.generate(
        asked,
        chat=chat,
        max_tokens=max_tokens,
        sampling=sampling,
        threshold=threshold,
        aggregation=aggregation,
        span=span,
        every=every,
        holdback=holdback,
    )
    seconds = time.perf_counter() - started
    report(f"prompt: score {generation.prompt.score:.4f} of {generation.prompt_tokens} tokens")
    with generation:
        seconds += _write(generation, _write_json if json else _text_writer())
        if json:
            write_json_line(_ending(generation))
        else:
            sys.stdout.write("\n")
            sys.stdout.flush()
        _report_verdict(generation)
        rate = generation.tokens / seconds
        report(f"{generation.tokens} tokens, {rate:.1f} a second with the guard")
        if compare:
            count = max(generation.tokens, 1)
            tokens, seconds = generator.time_unguarded(asked, chat, count, sampling)
            report(f"{tokens} tokens, {tokens / seconds:.1f} a second without it")
        if generation.finish == "harmful":
            raise typer.Exit(EXIT_STOPPED)


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: {error}") from None


def _report_verdict(generation: Generation) -> None:
    if generation.finish == "harmful":
        where = f"token {generation.decided_at}" if generation.decided_at else "the prompt"
        report(
            f"harmful: score {generation.result.score:.4f} at {where}, stopped by "
            f"{generation.stopped_by}"
        )
    else:
        report(f"safe: score {generation.result.score:.4f}, finish {generation.finish}")


def _ending(generation: Generation) -> dict[str, object]:
    """What the last JSON line says."""
    return {
        "finish": generation.finish,
        "stopped_by": generation.stopped_by,
        "prompt": generation.prompt.to_dict(),
        "result": generation.result.to_dict(),
    }


def _write(generation: Generation, write: Callable[[Piece], None]) -> float:
    """Write the pieces; return the seconds that generating them took, without the writing."""
    seconds = 0.0
    while True:
        started = time.perf_counter()
        piece = next(generation, None)
        seconds += time.perf_counter() - started
        if piece is None:
            return seconds
        write(piece)


def _write_json(piece: Piece) -> None:
    write_json_line({"text": piece.text, "token": piece.token, "score": piece.score})


def _text_writer() -> Callable[[Piece], None]:
    """What writes pieces in the colours of their scores."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def write(piece: Piece) -> None:
        text = Text(printable(piece.text), color(piece.score))
        console.print(text, end="", soft_wrap=True)
        sys.stdout.flush()

    return write
