"""How a written result came about: its command, the machine, and the versions of what it used."""

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

_DISTRIBUTIONS = (
    "siren-edge", "numpy", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxruntime-genai",
    "tokenizers", "llm-siren", "torch", "transformers", "tensorrt", "tensorrt-rtx", "cuda-python",
    "openvino", "nncf", "matplotlib", "scikit-learn",
)  # fmt: skip


def origin() -> dict[str, Any]:
    """Return `command`, `created` (UTC), `machine` and `versions` of this process."""
    return {
        "command": command(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }


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
