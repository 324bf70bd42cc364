"""decision.json beside a head: how calibration found that it decides.

Calibration is a bundle's. Where a head is shipped, or exported more than once, the file lets every
export of it decide alike. llm-siren does not read it.
"""

from pathlib import Path

import msgspec

from siren_export.sources.local_file import read_json
from siren_runtime.bundle.files import sha256_of, write_whole
from siren_runtime.bundle.heads import Decision, HeadSpec, check_decision
from siren_runtime.errors import ArtifactError, BundleError, InputError

from .base import DECISION_FILE, WEIGHTS_FILE


class _DecisionFile(msgspec.Struct, forbid_unknown_fields=True):
    weights_sha256: str  # of the head's weights
    decision: Decision


def read_decision(folder: Path, name: str, head: HeadSpec) -> Decision | None:
    """Return how the head in `folder` decides; None where there is no such file.

    Args:
        name: of the head, for error messages.

    Raises:
        ArtifactError: the file is damaged, of other weights, or not for such a head.
    """
    path = folder / DECISION_FILE
    if not path.exists():
        return None
    found = read_json(path, _DecisionFile, ArtifactError)
    if found.weights_sha256 != sha256_of(folder / WEIGHTS_FILE):
        raise ArtifactError(
            f"{path}: is of other weights than {WEIGHTS_FILE}; remove it, or calibrate anew"
        )
    try:
        check_decision(name, head, found.decision, str(path))
    except BundleError as error:
        raise ArtifactError(str(error)) from None
    return found.decision


def write_decision(folder: Path, decision: Decision) -> Path:
    """Write how the head in `folder` decides, and return the file.

    Raises:
        InputError: there is no head, or the file cannot be written.
    """
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise InputError(f"{folder}: has no {WEIGHTS_FILE}, so it is no head")
    data = msgspec.json.encode(_DecisionFile(sha256_of(weights), decision))
    write_whole(folder / DECISION_FILE, msgspec.json.format(data) + b"\n", InputError)
    return folder / DECISION_FILE
