"""A benchmark's result on disk: one JSON file that says how it came about, one Markdown table."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

_DISTRIBUTIONS = (
    "siren-edge", "numpy", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxruntime-genai",
    "tokenizers", "llm-siren", "torch", "transformers", "tensorrt", "tensorrt-rtx", "cuda-python",
    "openvino", "nncf", "matplotlib",
)  # fmt: skip


def write_record(
    path: Path,
    bench: str,
    settings: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    table: str,
) -> None:
    """Write `path` (JSON) and, beside it, the table as `path` with the suffix .md.

    Args:
        bench: What was measured, as the command is called.
        settings: Everything that was chosen, defaults included.
        results: One entry a case, with raw samples and the units in the keys.
        table: The results as a Markdown table.
    """
    made_by, on = command(), machine()
    record = {
        "bench": bench,
        "command": made_by,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": on,
        "versions": versions(),
        "settings": dict(settings),
        "results": list(results),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    note = f"Made by `{made_by}` on {on['cpu']}, {on['logical_cores']} cores."
    path.with_suffix(".md").write_text(f"{table}\n{note}\n", encoding="utf-8")


def command() -> str:
    """Return the command line of this process, its program without a path."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """Describe the machine: processor, logical cores, memory in bytes, system."""
    return {
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [
            flag
            for flag in (_cpu_field("flags") or "").split()
            if flag.startswith(("avx", "amx", "fma"))
        ],
        "logical_cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **installed_versions(*_DISTRIBUTIONS)}


def installed_versions(*names: str) -> dict[str, str]:
    """Return the versions of those of the distributions that are installed."""
    installed = {d.name: d.version for d in metadata.distributions()}
    return {name: installed[name] for name in names if name in installed}


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote.

    Raises:
        InputError: there is no such file, or it is not a record.
    """
    from siren_runtime.errors import InputError  # here, since engines import this module

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


def _cpu_field(name: str) -> str | None:
    """Read a field of the first processor in /proc/cpuinfo; None where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
