"""Options that several commands have."""

from typing import Annotated

import typer

Spans = Annotated[
    bool | None,
    typer.Option(
        "--spans/--no-spans",
        help="Score sentences and parts of 32, 64 and 128 tokens too, so that plain text around "
        "harm does not hide it; default: where siren calibrate --spans set thresholds.",
    ),
]
