"""`siren extract`: pool labelled text into a feature store."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from siren_runtime.bundle.heads import Pooling
from siren_runtime.bundle.types import Precision
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report
from siren_runtime.text.reading import DEFAULT_MAX_BYTES
from siren_train.data.copies import read_copies
from siren_train.data.reading import LEFT_OUT
from siren_train.data.sources import parse_source
from siren_train.store.store import DType, FeatureStore

from . import options
from .extra import need_train_extra

need_train_extra()

app = typer.Typer(add_completion=False)

_BOTH: tuple[Pooling, ...] = ("residual_mean", "mlp_mean")
_EPILOG = """
Examples:

siren extract minilm data/*.jsonl -o features

siren extract minilm data/*.jsonl -o features --labels hate,violence,self-harm

siren extract minilm data/*.jsonl more.jsonl -o more-features --reuse features

siren extract ./backbone runs.jsonl -o features --trajectories

siren extract smollm2 targets.jsonl -o features --prefixes

siren extract smollm2-genai data/*.jsonl -o features --model-id HuggingFaceTB/SmolLM2-135M-Instruct
"""


@app.command(epilog=_EPILOG)
def extract(
    backbone: Annotated[
        str,
        typer.Argument(
            help="The backbone's folder or repo id, or a shipped guard's name (minilm, smollm2, "
            "gemma3-270m); or a generator's, a model folder of onnxruntime-genai, whose own engine "
            "then pools."
        ),
    ],
    data: options.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="The feature store to make.")],
    pooling: Annotated[
        Literal["residual_mean", "mlp_mean", "both"], typer.Option(help="What to pool.")
    ] = "residual_mean",
    trajectories: Annotated[
        bool,
        typer.Option(
            "--trajectories",
            help="Rows have messages and tools, what an agent did, and a label; the last token's "
            "state behind every block is stored, for siren train --head trajectory.",
        ),
    ] = False,
    prefixes: Annotated[
        bool,
        typer.Option(
            "--prefixes",
            help="Rows are what siren rollouts writes: prompt, prefix and target, for siren train "
            "--head forecast.",
        ),
    ] = False,
    dtype: Annotated[DType, typer.Option(help="Of the stored features.")] = "float32",
    precision: Annotated[Precision, typer.Option(help="Of the engine that pools.")] = "fp32",
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Token limit; default: 512 of a text, 4096 of a trajectory."),
    ] = None,
    max_layer: Annotated[
        int | None,
        typer.Option(min=1, help="Pool only the first so many layers, which is faster."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            help="Of a generator: put texts in its chat template, a prompt as the user's message "
            "and its response behind it."
        ),
    ] = True,
    splits: options.Splits = "",
    max_train_rows: options.MaxTrainRows = None,
    copies: Annotated[
        list[Path] | None,
        typer.Option(
            help="A JSON file that says which train rows are pooled again: with harmless sentences "
            "or other safe rows around them, behind such, in capitals, or spans of safe ones, so "
            "that the head learns what does not matter. A field of a further file replaces that of "
            "the first."
        ),
    ] = None,
    reuse: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE",
            help="An earlier store of the same engine: what it has of these texts is not pooled "
            "again, so that rows or copies that were added cost only themselves.",
        ),
    ] = None,
    model_id: Annotated[
        str | None,
        typer.Option(help="What heads shall call the backbone; default: what BACKBONE says."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the backbone's repository.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all.")] = None,
    text: options.TextColumns = "",
    label: options.LabelColumn = "label",
    split_column: options.SplitColumn = "split",
    id_column: options.IdColumn = "id",
    category: options.CategoryColumn = "category",
    classes: options.Classes = "safe,harmful",
    labels: options.Labels = "",
    max_bytes: options.MaxBytes = DEFAULT_MAX_BYTES,
) -> None:
    """Pool every layer's neurons over labelled text, with the engine that will serve the head.

    A run that was stopped goes on where it was when the same command is given again.
    """
    # Only here, so that siren --help need not wait for the exporter.
    from siren_export.heads.registry import load_artifact
    from siren_export.sources.checkpoint import Checkpoint, load_checkpoint
    from siren_export.sources.recipes import find_recipe
    from siren_train.store.extract import extract as extract_features
    from siren_train.store.generator import Generator, is_generator, open_generator

    if trajectories and (pooling != "residual_mean" or text or copies or labels):
        raise typer.BadParameter("--trajectories has no --pooling, --text, --copies and --labels")
    if prefixes and (trajectories or text or labels):
        raise typer.BadParameter("--prefixes has no --trajectories, --text and --labels")
    columns = options.make_columns(
        text=text,
        label=label,
        split=split_column,
        id_=id_column,
        category=category,
        classes=classes,
        labels=labels,
        trajectories=trajectories,
        prefixes=prefixes,
        max_bytes=max_bytes,
    )
    sources = [parse_source(argument) for argument in data]
    most_rows = options.most_rows(max_train_rows)
    recipe = find_recipe(backbone)
    source: Checkpoint | Generator
    if is_generator(backbone):
        source = open_generator(backbone, "chat" if chat else "plain")
    else:
        source = load_checkpoint(str(recipe.backbone()) if recipe else backbone, revision=revision)
    if model_id is None:
        model_id = load_artifact(recipe.artifact).model_id if recipe else backbone
    poolings: tuple[Pooling, ...] = _BOTH if pooling == "both" else (pooling,)
    if trajectories:
        poolings = ("residual_last",)
    with Bars() as bars:
        store = extract_features(
            sources,
            columns,
            source,
            output,
            model_id=model_id,
            model_revision=revision,
            poolings=poolings,
            dtype=dtype,
            max_length=max_length or (4096 if trajectories else 512),
            max_layer=max_layer,
            precision=precision,
            splits=options.split_names(splits),
            most_rows=most_rows,
            copies=read_copies(*copies) if copies else None,
            reuse=FeatureStore.open(reuse) if reuse else None,
            threads=threads,
            progress=bars.update,
        )
    if store.manifest.left_out:
        report(LEFT_OUT.format(store.manifest.left_out))
    splits = ", ".join(f"{rows:,} {split}" for split, rows in store.manifest.splits.items())
    report(f"{output}: {splits} rows of {store.manifest.layers} x {store.manifest.channels}")
