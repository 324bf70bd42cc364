"""Open a bundle folder and check that it is whole and keeps to itself."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from siren_runtime.errors import BundleError, InputError

from .external_data import external_data_locations
from .files import sha256_of
from .manifest import MANIFEST_FILE, FileSpec, Manifest, check_relative, decode

Verify = Literal["size", "full"]

# Of an ensemble's members too: a star stands for slashes as well.
BUNDLE_PATTERNS = (
    MANIFEST_FILE, f"*/{MANIFEST_FILE}", "tokenizer.json", "*/tokenizer.json", "ensemble.json",
    "*.onnx", "*.bin",
)  # fmt: skip
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_GRAPH_BYTES = 256 << 20  # weights belong beside the graph, which is then a few megabytes


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed its checks. `path` is absolute."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Return the path of one of the bundle's files."""
        return self.path / name


def load_bundle(path: str | os.PathLike[str], *, verify: Verify = "size") -> Bundle:
    """Read guard.json of the bundle in the folder `path` and check every file it lists.

    Each must be a regular file inside the folder, of its size, and with `verify="full"` of its
    SHA-256; the graphs may take their weights from listed files only.

    Raises:
        BundleError: a check failed.
        InputError: `verify` is neither "size" nor "full".
    """
    if verify not in ("size", "full"):
        raise InputError(f'verify must be "size" or "full", found {verify!r}')
    root = Path(os.path.realpath(path))
    if not root.is_dir():
        raise BundleError(f"{path}: not a folder; a bundle is the folder that siren export wrote")
    manifest = decode(read_manifest(root, MANIFEST_FILE), str(root / MANIFEST_FILE))
    for name, spec in manifest.files.items():
        _check_size(root, name, spec)
    for graph in manifest.graphs.values():
        _check_external_data(root, graph.file, manifest)
    if verify == "full":
        for name, spec in manifest.files.items():
            _check_hash(root / name, spec)
    return Bundle(root, manifest)


def read_manifest(root: Path, name: str) -> bytes:
    """Read a small file of the folder `root`, a real path.

    Raises:
        BundleError: it is missing, too large, no regular file, or behind a symbolic link.
    """
    size = _regular_file_size(root, name)
    if size > _MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{root / name}: {size} bytes, a manifest has {_MAX_MANIFEST_BYTES} at most"
        )
    return _read(root / name)


def _check_size(root: Path, name: str, spec: FileSpec) -> None:
    size = _regular_file_size(root, name)
    if size != spec.size:
        raise BundleError(
            f"{root / name}: {size} bytes, guard.json says {spec.size}; the bundle is damaged, "
            "copy or export it again"
        )


def _check_hash(path: Path, spec: FileSpec) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
    if found != spec.sha256:
        raise BundleError(
            f"{path}: SHA-256 {found}, guard.json says {spec.sha256}; the bundle is damaged or "
            "was tampered with, copy or export it again"
        )


def _check_external_data(root: Path, graph: str, manifest: Manifest) -> None:
    path = root / graph
    if manifest.files[graph].size > _MAX_GRAPH_BYTES:
        raise BundleError(f"{path}: over {_MAX_GRAPH_BYTES} bytes; its weights must lie beside it")
    try:
        locations = external_data_locations(_read(path))
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    for location in sorted(locations):
        check_relative(location, str(path))
        if str(PurePosixPath(graph).parent / location) not in manifest.files:
            raise BundleError(
                f"{path}: a tensor's data is in {location!r}, which guard.json does not list"
            )


def _regular_file_size(root: Path, name: str) -> int:
    path = root / name
    try:
        if os.path.realpath(path) != str(path):
            raise BundleError(f"{path}: is or passes through a symbolic link; a bundle holds none")
        status = path.stat()
    except FileNotFoundError:
        raise BundleError(f"{path}: missing; copy the whole bundle or export it again") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: not a regular file")
    return status.st_size


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
