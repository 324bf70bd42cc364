"""`siren bench synthesize`."""

from pathlib import Path
from typing import Annotated

import typer

from siren_bench.records.progress import say
from siren_bench.subjects import subject

from . import options


def synthesize(
    shape: Annotated[str, typer.Argument(help=f"One of {options.SHAPE_NAMES}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.")],
) -> None:
    """Write a checkpoint of a true shape with random weights, and a head for it.

    The backbone lands in OUTPUT/backbone, the head in OUTPUT/head, ready for siren export.
    """
    made = subject.synthesize(options.shape_of(shape), output)
    say(f"{made.backbone} and {made.head}: {made.description}")
