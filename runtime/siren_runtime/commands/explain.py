"""`siren explain`: what moved a score, as a table, JSON or picture."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from siren_runtime.bundle.files import write_whole
from siren_runtime.errors import InputError
from siren_runtime.scoring.explain import NEUTRAL, Explainer
from siren_runtime.scoring.explanation import Explanation
from siren_runtime.text.reading import DEFAULT_MAX_BYTES, DEFAULT_MAX_TOKENS

from .console import need, one_line, report, write_json_line
from .explain_picture import picture
from .options import MaxBytes, MaxTokens, Spans

need("onnxruntime")

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

siren explain minilm "How do I pick a lock?"

siren explain my-guard --prompt "How do I pick a lock?" --response "With a pick." --picture why.svg

siren explain my-guard "a text" --head kinds --category hate --format json
"""


@app.command(epilog=_EPILOG)
def explain(
    bundle: Annotated[str, typer.Argument(help="A bundle, as siren score takes it.")],
    text: Annotated[str | None, typer.Argument(help="The text to explain.")] = None,
    prompt: Annotated[str | None, typer.Option(help="In place of TEXT, with --response.")] = None,
    response: Annotated[str | None, typer.Option(help="What was answered to --prompt.")] = None,
    head: Annotated[
        str | None, typer.Option(help="Name of the head; default: the bundle's first.")
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(help="A category of the head; default: harm, or the likeliest label."),
    ] = None,
    neutral: Annotated[
        str, typer.Option(help="What the text is compared with, repeated to its length.")
    ] = NEUTRAL,
    top: Annotated[int, typer.Option(min=1, help="Neurons, pairs and parts to show.")] = 12,
    format: Annotated[Literal["table", "json"], typer.Option(help="Of the output.")] = "table",
    image: Annotated[
        Path | None,
        typer.Option("--picture", dir_okay=False, help="Also draw it into this file, as SVG."),
    ] = None,
    spans: Spans = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all.")] = None,
    max_tokens: MaxTokens = DEFAULT_MAX_TOKENS,
    max_bytes: MaxBytes = DEFAULT_MAX_BYTES,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds it may take once the bundle is open.")
    ] = None,
) -> None:
    """Say which part of a text, which layers and which neurons moved its score.

    A neutral text of the same length is read beside, and the difference of the two log-odds is
    divided among the features by integrated gradients: what they get adds up, which is checked. Of
    decoders it is divided among tokens too; of encoders, parts of the text are left out in turn.
    Of a polynomial head also what each order moved, and which pairs of neurons. Where a span of the
    text decides, as in siren score, that span is explained; --no-spans explains the whole.
    """
    explainer = Explainer(
        bundle,
        head=head,
        threads=threads,
        neutral=neutral,
        spans=spans,
        max_tokens_per_text=max_tokens,
        max_bytes_per_text=max_bytes,
    )
    found = explainer.explain(
        text,
        prompt=prompt,
        response=response,
        category=category,
        neurons=top,
        deadline=deadline,
    )
    if image is not None:
        write_whole(image, picture(found).encode(), InputError)
        report(f"{image}: drawn")
    if format == "json":
        write_json_line(found.to_dict())
    else:
        _show(found, top)


def _show(found: Explanation, top: int) -> None:
    from rich.console import Console, Group, RenderableType
    from rich.table import Table
    from rich.text import Text

    what = one_line(found.category) or "harm"
    steps = "the head is linear" if found.steps == 1 else f"{found.steps} steps"
    about = Text(
        f"{what} by {found.head}: probability {found.score:.4f}, log-odds {found.log_odds:+.3f} "
        f"against {found.baseline:+.3f} of a neutral text; shares add up to within "
        f"{abs(found.residual):.1g} ({steps})\n"
    )
    for note in found.notes:
        about.append(f"{note}\n", "yellow")
    strongest = Text.assemble(
        ("strongest part ", "bold"),
        f"{found.strongest.share:+.3f}  {one_line(found.strongest.text)!r}\n",
    )
    how = "tokens" if found.parts_by == "attribution" else "without it"
    parts = Table("part", "place", how, box=None, padding=(0, 2, 0, 0))
    ranked = sorted(found.parts, key=lambda part: -abs(part.share))[:top]
    for part in ranked:
        text = one_line(part.text) if part.span[1] > part.span[0] else "(special)"
        parts.add_row(Text(text), f"{part.span[0]}-{part.span[1]}", f"{part.share:+.4f}")
    layers = Table("layer", "weight", "neurons", "share", box=None, padding=(0, 2, 0, 0))
    for layer in found.layers:
        layers.add_row(
            str(layer.layer), f"{layer.weight:.2f}", str(layer.neurons), f"{layer.share:+.4f}"
        )
    neurons = Table("layer", "channel", "value", "neutral", "share", box=None, padding=(0, 2, 0, 0))
    for neuron in found.neurons:
        neurons.add_row(
            str(neuron.layer),
            str(neuron.channel),
            f"{neuron.value:.4g}",
            f"{neuron.baseline:.4g}",
            f"{neuron.share:+.4f}",
        )
    gap = Text()
    shown: list[RenderableType] = [about, strongest, parts, gap, layers, gap, neurons]
    if found.terms:
        orders = Table("order", "share", box=None, padding=(0, 2, 0, 0))
        for order, share in enumerate(found.terms, start=1):
            orders.add_row(str(order), f"{share:+.4f}")
        shown += [gap, orders]
    if found.pairs:
        pairs = Table("layer/channel", "with", "share", box=None, padding=(0, 2, 0, 0))
        for pair in found.pairs:
            pairs.add_row(*pair.names, f"{pair.share:+.4f}")
        shown += [gap, pairs]
    Console().print(Group(*shown))
