"""A benchmark's result on disk: one JSON file that says how it came about, one Markdown table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siren_runtime.commands.origin import origin
from siren_runtime.errors import InputError

_PRODUCTS = {"avx512_vnni": "AVX-512 VNNI", "amx_int8": "AMX"}  # by the flag of a CPU


def write_record(
    path: Path,
    bench: str,
    settings: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    table: str,
    measured: Mapping[str, Any] | None = None,
) -> None:
    """Write `path` (JSON) and, beside it, the table as `path` with the suffix .md.

    Args:
        bench: What was measured, as the command is called.
        settings: Everything that was chosen, defaults included.
        results: One entry a case, with raw samples and the units in the keys.
        table: The results as a Markdown table.
        measured: The record that the raw samples are of, where this process only tells them anew;
            then that one's command, machine and versions stay.
    """
    now = origin()
    made, retold = (now, {}) if measured is None else (measured, {"retold": now})
    record = {
        "bench": bench,
        **{key: made[key] for key in now if key in made},
        **retold,
        "settings": dict(settings),
        "results": list(results),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    on = made["machine"]
    note = f"Made by `{made['command']}` on {processor(on)}, {on['logical_cores']} cores."
    if retold:
        note += f" Told anew from its samples by `{now['command']}`."
    path.with_suffix(".md").write_text(f"{table}\n{note}\n", encoding="utf-8")


def processor(machine: Mapping[str, Any]) -> str:
    """The processor of a record's machine in words, with what 8-bit products go by."""
    found = [name for flag, name in _PRODUCTS.items() if flag in machine.get("cpu_flags", ())]
    return " ".join([machine["cpu"], *(["with", " and ".join(found)] if found else [])])


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote.

    Raises:
        InputError: there is no such file, or it is not a record.
    """
    try:
        record = json.loads(path.read_bytes())
        for key in ("bench", "command", "machine", "settings", "results"):
            record[key]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not a result of siren bench: {error!r}") from None
    return dict(record)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table; every column but the first is aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))
