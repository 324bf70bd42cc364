"""How a report is written: as JSON, and as Markdown for people."""

from pathlib import Path

import msgspec

from siren_runtime.bundle.files import write_whole
from siren_runtime.errors import InputError


def write_report(folder: Path, name: str, found: msgspec.Struct, markdown: str) -> None:
    """Write what was `found` as NAME.json and its tables as NAME.md into `folder`.

    Raises:
        InputError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(found)) + b"\n"
    write_whole(folder / f"{name}.json", data, InputError)
    write_whole(folder / f"{name}.md", markdown.encode(), InputError)
