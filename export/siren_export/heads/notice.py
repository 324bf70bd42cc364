"""NOTICE beside a head: what the licence of the head, or of its backbone, asks to be passed on."""

from siren_export.sources.local_file import read_bytes
from siren_runtime.bundle.manifest import NOTICE_FILE
from siren_runtime.errors import ArtifactError

from .base import Artifact

_MAX_BYTES = 1 << 20


def read_notices(artifact: Artifact) -> bytes:
    """The notices of a head and of those that are read with it, each once; empty if none has one.

    Raises:
        ArtifactError: a notice cannot be read.
    """
    folders = [artifact.path, *(other.path for other in artifact.further.values())]
    paths = [path for folder in folders if (path := folder / NOTICE_FILE).exists()]
    notices = [read_bytes(path, ArtifactError, limit=_MAX_BYTES) for path in paths]
    return b"\n".join(dict.fromkeys(notices))
