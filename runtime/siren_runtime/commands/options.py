"""Options that several commands have."""

from typing import Annotated

import typer

Spans = Annotated[
    bool | None,
    typer.Option(
        "--spans/--no-spans",
        help="Score sentences and parts too, of the sizes that the bundle has thresholds for, else "
        "of 32, 64 and 128 tokens, so that plain text around harm does not hide it; default: where "
        "siren calibrate --spans set thresholds.",
    ),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of a text; a larger one is an error.")]
MaxBytes = Annotated[int, typer.Option(min=1, help="Bytes of a text; a larger one is an error.")]
