"""A plan on disk: `plans/NAME.plan`, and beside it `NAME.json`, which says what it is good for.

The record lies beside the plan and not in guard.json: a bundle stays as it was exported and
verified, and each machine adds the plans that it compiled. A plan holds native code, so its
SHA-256 is checked at every load, and plans are never fetched from a hub.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from siren_runtime.backends.shapes import Profile
from siren_runtime.bundle.files import replacement, write_durably
from siren_runtime.bundle.reader import Bundle
from siren_runtime.bundle.types import Positive, Sha256
from siren_runtime.errors import BackendError, is_of_caller

from .library import Flavor, Library

PLANS_FOLDER = "plans"
RECORD_VERSION = 1
_MAX_RECORD_BYTES = 1 << 20


class PlanRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a plan was compiled by, from and for.

    `compute_capabilities` are the GPUs it runs on, such as "8.7"; empty means TensorRT-RTX's
    portable default, which the library itself judges. `sources` maps each file of the bundle that
    went in to its SHA-256.
    """

    record_version: int
    flavor: Flavor
    library_version: str
    graph: str
    compute_capabilities: list[str]
    profiles: Annotated[list[Profile], msgspec.Meta(min_length=1)]
    sources: dict[str, Sha256]
    size: Positive
    sha256: Sha256
    created: str
    build_seconds: float


@dataclass(frozen=True)
class Plan:
    """A recorded plan and where its parts lie."""

    path: Path
    record: PlanRecord

    @property
    def runtime_cache(self) -> Path:
        """Where TensorRT-RTX keeps the kernels that it compiled for this machine's GPU."""
        return self.path.with_suffix(".runtime-cache")

    def read(self) -> bytes:
        """Return the plan's bytes.

        Raises:
            BackendError: it is missing, truncated or changed.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            if is_of_caller(error):
                raise
            raise BackendError(f"{self.path}: cannot be read: {error}; run siren build") from None
        if len(data) != self.record.size:
            raise BackendError(
                f"{self.path}: {len(data)} bytes, its record says {self.record.size}; the plan is "
                "truncated, run siren build again"
            )
        found = hashlib.sha256(data).hexdigest()
        if found != self.record.sha256:
            raise BackendError(
                f"{self.path}: SHA-256 {found}, its record says {self.record.sha256}; the plan "
                "was changed, run siren build again"
            )
        return data


def source_hashes(bundle: Bundle, graph: str) -> dict[str, str]:
    """Map the graph's file, and the weights that it may take its values from, to their SHA-256."""
    file = bundle.manifest.graphs[graph].file
    return {
        name: spec.sha256
        for name, spec in bundle.manifest.files.items()
        if name == file or name.endswith(".bin")
    }


def is_stale(record: PlanRecord, bundle: Bundle) -> bool:
    """Whether the plan was compiled from another graph or other weights than the bundle's."""
    return record.graph not in bundle.manifest.graphs or record.sources != source_hashes(
        bundle, record.graph
    )


def mismatches(
    record: PlanRecord, bundle: Bundle, library: Library, capability: str | None
) -> list[str]:
    """Return why a plan cannot run here, each with what would match; empty if it can.

    Args:
        capability: of this machine's GPU, such as "8.7"; None leaves it out.
    """
    reasons = []
    if (record.flavor, record.library_version) != (library.flavor, library.version):
        reasons.append(
            f"compiled by {record.flavor} {record.library_version}, installed is "
            f"{library.flavor} {library.version}"
        )
    if is_stale(record, bundle):
        reasons.append(
            f"compiled from another {', '.join(record.sources)} than the bundle's; it is stale"
        )
    wanted = record.compute_capabilities
    if capability is not None and wanted and capability not in wanted:
        reasons.append(
            f"compiled for compute capability {', '.join(wanted)}, the GPU here has {capability}"
        )
    return reasons


def find_plan(bundle: Bundle, graph: str, library: Library, capability: str | None) -> Plan:
    """Return the newest plan of `graph` that runs here.

    Raises:
        BackendError: there is none; the message says of each plan what would match.
    """
    build = f"run siren build {bundle.path} --flavor {library.flavor}"
    refused = []
    fitting = []
    for path, record in recorded_plans(bundle).items():
        if isinstance(record, BackendError):
            refused.append(str(record))
            continue
        if record.graph != graph or record.flavor != library.flavor:
            continue
        if reasons := mismatches(record, bundle, library, capability):
            refused.append(f"{path}: {'; '.join(reasons)}")
        else:
            fitting.append(Plan(path, record))
    if fitting:
        return max(fitting, key=lambda plan: plan.record.created)
    found = f"; found {' | '.join(refused)}" if refused else ""
    raise BackendError(
        f"{bundle.path}: no {library.flavor} {library.version} plan of the {graph} graph fits "
        f"here{found}; {build}"
    )


def recorded_flavors(bundle: Bundle) -> set[Flavor]:
    """The libraries that the bundle has plans for; damaged records are left out."""
    records = recorded_plans(bundle).values()
    return {record.flavor for record in records if isinstance(record, PlanRecord)}


def recorded_plans(bundle: Bundle) -> dict[Path, PlanRecord | BackendError]:
    """Map each plan of the bundle that has a record to it, or to what is wrong with the record.

    Raises:
        BackendError: the folder of plans is not the bundle's own.
    """
    records: dict[Path, PlanRecord | BackendError] = {}
    for path in sorted(_check_own(bundle.path / PLANS_FOLDER).glob("*.json")):
        try:
            records[path.with_suffix(".plan")] = read_record(path)
        except BackendError as error:  # noqa: PERF203 - a few files
            records[path.with_suffix(".plan")] = error
    return records


def read_record(path: Path) -> PlanRecord:
    """Read a plan's record.

    Raises:
        BackendError: it is unreadable, of another version or not a record.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_RECORD_BYTES)
        record = msgspec.json.decode(data, type=PlanRecord)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        if is_of_caller(error):
            raise
        raise BackendError(f"{path}: not a plan's record: {error}; run siren build again") from None
    if record.record_version != RECORD_VERSION:
        raise BackendError(
            f"{path}: record version {record.record_version}, this runtime reads {RECORD_VERSION}; "
            "run siren build again"
        )
    return record


def write_plan(path: Path, plan: memoryview, record: PlanRecord) -> None:
    """Write the plan and its record; what was there stays until both are whole on disk.

    Raises:
        BackendError: the folder cannot be written.
    """
    encoded = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    beside = path.with_suffix(".json")
    with replacement(beside, BackendError) as new_record, replacement(path, BackendError) as new:
        write_durably(new, plan)
        write_durably(new_record, encoded)
        beside.unlink(missing_ok=True)  # no record ever names another plan


def plans_folder(bundle: Bundle, *inside: str) -> Path:
    """Make the bundle's folder of plans, or one inside of it, and return it.

    Raises:
        BackendError: it cannot be made, or is not the bundle's own.
    """
    folder = _check_own(bundle.path.joinpath(PLANS_FOLDER, *inside))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_of_caller(error):
            raise
        raise BackendError(f"{folder}: cannot be made: {error}") from None
    return folder


def _check_own(folder: Path) -> Path:
    if os.path.realpath(folder) != str(folder):
        raise BackendError(f"{folder}: leaves the bundle by a symbolic link; a bundle has none")
    return folder
