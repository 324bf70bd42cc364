"""`siren triton`: a guard as models of NVIDIA's Triton Inference Server."""

import re
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from siren_runtime.bundle.shipped import find_bundle
from siren_runtime.commands.console import refuse_options, report
from siren_runtime.errors import InputError
from siren_serve.triton.repository import Form, ModelSettings, write_model

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command(epilog="Example: siren triton engines/minilm/bundle -o models --forms text,stream")
def triton(
    context: typer.Context,
    bundle: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE",
            help="Folder of a bundle, a shipped guard's name (minilm), or a hub repository id.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The model repository; other models stay.")
    ],
    name: Annotated[
        str,
        typer.Option(
            help="Of the model of whole texts; others are NAME_stream, NAME_tokens and so on."
        ),
    ] = "guard",
    forms: Annotated[
        str,
        typer.Option(
            help="text: whole texts. stream: growing ones, a sequence each. tokens: score.onnx in "
            "Triton's ONNX Runtime backend, for who tokenizes. plan: the bundle's TensorRT plan in "
            "its TensorRT backend, likewise. Any of these, with commas."
        ),
    ] = "text",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of an engine run.")] = 1,
    instances: Annotated[int, typer.Option(min=1, help="Processes, each with the bundle.")] = 1,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Texts of a run, and streams that are open.")
    ] = 64,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more are refused.")
    ] = 512,
    timeout: Annotated[
        float, typer.Option(min=0.01, help="Seconds that a request, or a stream's piece, waits.")
    ] = 60,
) -> None:
    """Write a Triton model repository: text in, verdict out, batched by Triton.

    Triton's Python must find siren-edge: pip install '.[cpu]' there, in its checkout. The bundle is
    copied.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"--name {name!r}: letters, digits, '_', '-' and '.' make a model's name")
    chosen = _forms(forms)
    folder = find_bundle(bundle)
    settings = ModelSettings(threads, instances, max_batch, max_queue, timeout)
    if chosen == ["plan"]:
        refuse_options(context, ["threads"], "a form that runs on the CPU")
    for form in chosen:
        called = name if form == "text" else f"{name}_{form}"
        report(f"wrote {write_model(folder, output, called, form, settings)}")


def _forms(forms: str) -> list[Form]:
    named = dict.fromkeys(form.strip() for form in forms.split(","))
    if unknown := [form for form in named if form not in get_args(Form)]:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(get_args(Form))}")
    return cast("list[Form]", [*named])
