"""The options that several commands share, and how their lists are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from siren_bench.peers.registry import PEERS, peer_names
from siren_bench.subjects.real_models import REAL_MODELS
from siren_bench.subjects.shapes import SHAPES, Shape

RESULTS = Path("bench/results")
SHAPE_NAMES = ", ".join(SHAPES)
PRECISIONS = ("fp32", "fp16", "int8", "int4")  # those that ONNX Runtime runs
ALL_PRECISIONS = ",".join(PRECISIONS)
WITH_SPANS = "+spans"  # behind a precision: the guard as it is shipped
LLM_SIREN = "llm-siren-float32,llm-siren-bfloat16"

Head = Annotated[
    str,
    typer.Argument(
        help="A shipped guard (minilm), a head's folder, a trained model "
        f"({', '.join(REAL_MODELS)}), or a shape to fill with random weights ({SHAPE_NAMES})."
    ),
]
Backbone = Annotated[
    Path | None, typer.Option(help="The backbone's folder, in place of the head's own.")
]
Engines = Annotated[
    str,
    typer.Option(
        help=f"Our precisions, of {', '.join(PRECISIONS)}; ratios are taken to the first."
    ),
]
Peers = Annotated[str, typer.Option(help=f"Any of {', '.join(PEERS)}; empty for none.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of each engine.")]
Keep = Annotated[
    Path | None,
    typer.Option(
        help="Keep random checkpoints, bundles and exports of peers in this folder, and use "
        "those already there; remove it to have them made again. Default: a temporary folder."
    ),
]


def record_file(path: Path | None) -> Path | None:
    """Refuse a file whose table or chart, which lie beside it, would overwrite it."""
    if path is not None and path.suffix in (".md", ".png"):
        raise typer.BadParameter(
            f"{path} is where the {'table' if path.suffix == '.md' else 'chart'} goes; give a "
            ".json file"
        )
    return path


def output_option(default: str = "") -> Any:
    """--output of a command, in words what it is by default."""
    told = f"The JSON file to write. [default: {default}]" if default else "The JSON file to write."
    return typer.Option("--output", "-o", dir_okay=False, callback=record_file, help=told)


Output = Annotated[Path | None, output_option("bench/results/COMMAND-HEAD.json")]
RecordFile = Annotated[Path, output_option()]


def shape_of(name: str) -> Shape:
    """Return the shape of that name, or refuse it."""
    if name not in SHAPES:
        raise typer.BadParameter(f"{name!r} is not one of {SHAPE_NAMES}")
    return SHAPES[name]


def precisions_of(engines: str, further: Sequence[str] = ()) -> list[str]:
    """Read --engines: one precision at least, each known, or one of `further`."""
    names = [name.strip() for name in engines.split(",") if name.strip()]
    known = (*PRECISIONS, *further)
    for name in names or [""]:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}")
    return list(dict.fromkeys(names))


def peers_of(peers: str) -> list[str]:
    """Read --peers, or refuse a name."""
    try:
        return list(dict.fromkeys(peer_names(peers)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def numbers_of(option: str, values: str) -> list[int]:
    """Read a list of whole numbers from 1, like 8,32,128; they come back sorted."""
    try:
        numbers = sorted({int(value) for value in values.split(",")})
    except ValueError:
        raise typer.BadParameter(f"{option} must be like 8,32,128, found {values!r}") from None
    if numbers[0] < 1:
        raise typer.BadParameter(f"{option} must be from 1, found {numbers[0]}")
    return numbers


def result_path(output: Path | None, command: str, head: str) -> Path:
    """Return --output, or its default."""
    return output or RESULTS / f"{command}-{Path(head).resolve().name}.json"
