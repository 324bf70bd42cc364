"""How a report is written: as JSON, and as Markdown for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from siren_runtime import Guard
from siren_runtime.bundle.files import write_whole
from siren_runtime.commands.origin import origin
from siren_runtime.errors import InputError


def measured_by(guard: Guard) -> dict[str, Any]:
    """How an evaluation of a guard came about: command, time, machine and versions, and the SHA-256
    of the weights of each bundle's heads, by name; none of a bundle that does not say.
    """
    heads = [dict(manifest.weights_sha256) for manifest in guard.manifests]
    return {**origin(), "weights_sha256": heads}


def write_report(
    folder: Path,
    name: str,
    found: msgspec.Struct,
    markdown: str,
    made: Mapping[str, Any] | None = None,
) -> None:
    """Write what was `found` as NAME.json and its tables as NAME.md into `folder`.

    Args:
        made: How it came about, which the JSON says too.

    Raises:
        InputError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = {**msgspec.to_builtins(found), **(made or {})}
    data = msgspec.json.format(msgspec.json.encode(fields)) + b"\n"
    write_whole(folder / f"{name}.json", data, InputError)
    write_whole(folder / f"{name}.md", markdown.encode(), InputError)
