"""`siren graft`: let a generator give the neurons that a head reads, and guard itself."""

from pathlib import Path
from typing import Annotated

import typer

from siren_export.graft.graft import graft as graft_folder
from siren_runtime.commands.console import need, report
from siren_runtime.generation.folder import read_folder
from siren_runtime.generation.manifest import Pooled

from .export_shown import export_bars
from .heads import load_heads, named_heads

need("onnxruntime_genai")

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command(epilog="Example: siren graft smollm2-genai ./my-head -o smollm2-guarded")
def graft(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A model folder of onnxruntime-genai, as python -m "
            "onnxruntime_genai.models.builder makes it."
        ),
    ],
    heads: Annotated[
        list[str],
        typer.Argument(
            metavar="HEAD...",
            help="A SIREN artifact: a folder with siren_config.json and siren.safetensors, or a "
            "hub repo id. Several are read from the same pass; NAME=HEAD names one, else the first "
            "is named harm and the others by their folders. The first decides.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The grafted folder to make.")],
    pool: Annotated[
        Pooled,
        typer.Option(help="Which tokens count: those of all of the conversation, or the response."),
    ] = "conversation",
    foreign_head: Annotated[
        bool,
        typer.Option(
            "--foreign-head", help="Take a head that was not trained on this folder's features."
        ),
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the weights; they are hard links otherwise.")
    ] = False,
    verify: Annotated[
        bool, typer.Option(help="Generate with and without the graft, and compare.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a grafted folder that is at the output.")
    ] = False,
) -> None:
    """Graft SIREN heads on a generator, which then guards itself by its own forward pass.

    The model's graph gets one more output, in which every token's neurons leave it; the rest of
    the heads lies beside it. Weights are linked and not copied. With siren generate, or
    GuardedGenerator, each token has its score before its text is given out.
    """
    with export_bars() as bars:
        manifest = graft_folder(
            folder,
            load_heads(named_heads(heads)),
            output,
            pooled=pool,
            foreign=foreign_head,
            copy=copy,
            verify=verify,
            overwrite=overwrite,
            progress=bars.update,
        )
    layers = len({layer for head in manifest.heads.values() for layer in head.layers})
    report(
        f"{output}: {manifest.neurons:,} neurons of {layers} of {manifest.backbone.blocks} blocks, "
        f"{manifest.width} numbers a token leave the graph"
    )
    if manifest.check is not None:
        report(
            f"generates as before on {manifest.check.prompts} prompts; neurons of "
            f"{manifest.check.tokens} tokens differ from the engine's states by up to "
            f"{manifest.check.max_difference:.1e}"
        )
    trained_on = manifest.trained_on
    if trained_on is None or trained_on.engine != manifest.engine:
        report("a head was not trained on this engine's features; measure it before you trust it")
    elif trained_on.tokenizer is None:
        report(
            "a head does not say which tokenizer and chat template it was trained with; if they "
            "are others than this folder's, extract and train anew"
        )
    trained_with = None if trained_on is None else trained_on.tokenizer
    if trained_with is not None and trained_with != read_folder(folder).tokenizer_digest():
        report(
            "a head was trained with another tokenizer or chat template, by which the same text is "
            "other tokens; measure it before you trust it"
        )
    if manifest.pooled == "response":
        report(
            "siren extract pools a response together with its prompt, so its heads were not "
            "trained for responses alone; measure yours before you trust it"
        )
