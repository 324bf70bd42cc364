"""Plans that are recorded in a bundle, and were never compiled."""

import hashlib
from pathlib import Path

import msgspec

from siren_runtime.backends.shapes import default_profiles
from siren_runtime.backends.tensorrt.plan import (
    PlanRecord,
    plans_folder,
    source_hashes,
    write_plan,
)
from siren_runtime.bundle.reader import Bundle


def save(
    bundle: Bundle, *, name: str = "score", data: bytes = b"a plan", **changes: object
) -> Path:
    """Record some bytes as a plan of TensorRT in a bundle; `changes` are to the record."""
    record = msgspec.structs.replace(
        PlanRecord(
            record_version=1,
            flavor="tensorrt",
            library_version="10.3.0",
            graph="score",
            compute_capabilities=["8.7"],
            profiles=default_profiles(32),
            sources=source_hashes(bundle, "score"),
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            created="2026-01-01T00:00:00+00:00",
            build_seconds=1.0,
        ),
        **changes,
    )
    path = plans_folder(bundle) / f"{name}.plan"
    write_plan(path, memoryview(data), record)
    return path
