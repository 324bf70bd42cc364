"""Open a bundle folder and check that it is whole and keeps to itself."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from siren_runtime.errors import BundleError, SirenError, is_of_caller

from .arguments import check_choice
from .external_data import external_data_locations
from .files import GIT_LFS_ADVICE, ReadFailures, is_git_lfs_pointer, read_whole, sha256_of
from .hub import advice_where_lacking, is_blob
from .manifest import MANIFEST_FILE, NOTICE_FILE, FileSpec, Manifest, check_relative, decode

Verify = Literal["size", "read", "full"]

# Of an ensemble's members too: a star stands for slashes as well.
BUNDLE_PATTERNS = (
    MANIFEST_FILE, f"*/{MANIFEST_FILE}", "tokenizer.json", "*/tokenizer.json", "ensemble.json",
    "*.onnx", "*.bin", "*.jinja", NOTICE_FILE, f"*/{NOTICE_FILE}",
)  # fmt: skip
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_GRAPH_BYTES = 256 << 20  # weights belong beside the graph, which is then a few megabytes


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed its checks. `path` is absolute.

    What an engine gets is read into memory whole and never mapped, so that a loaded guard does not
    depend on its files. `verify` "size" takes it as it is; else its SHA-256 must be guard.json's.
    """

    path: Path
    manifest: Manifest
    verify: Verify = "size"

    def file(self, name: str) -> Path:
        """Return the path of one of the bundle's files."""
        return self.path / name

    def read(self, name: str) -> bytes:
        """Return the bytes of one of the bundle's files, checked.

        Raises:
            BundleError: it cannot be read, or has another SHA-256 than guard.json says.
        """
        data = _read(self.file(name))
        self.check(name, data)
        return data

    def read_unchecked(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the bytes of a file that are handed to `check` before anything rests on them.

        Raises:
            BundleError: it cannot be read.
        """
        with ReadFailures(self.file(name)):
            return read_whole(self.file(name))

    def check(self, name: str, data: bytes | memoryview) -> None:
        """Compare the bytes of a file with its SHA-256, unless `verify` is "size".

        Raises:
            BundleError: guard.json has another.
        """
        if self.verify != "size":
            _check_hash(self.file(name), hashlib.sha256(data).hexdigest(), self.manifest, name)

    def weights_of(self, graph: str, model: bytes) -> dict[str, str]:
        """Map each location of external data in a graph's bytes to the bundle's file it names.

        Raises:
            BundleError: it is not one of the files that guard.json lists.
        """
        return _external_files(self.path, graph, model, self.manifest)


def load_bundle(path: str | os.PathLike[str], *, verify: Verify = "read") -> Bundle:
    """Read guard.json of the bundle in the folder `path` and check every file it lists.

    Each must be a regular file inside the folder and of its size; the graphs may take their
    weights from listed files only.

    Args:
        verify: "size" is no more than that. "read" checks the SHA-256 of each file when it is
            read, on the very bytes that the engine gets. "full" also that of every file at once.

    Raises:
        BundleError: a check failed.
        InputError: `verify` is none of these.
    """
    check_choice("verify", verify, get_args(Verify))
    root = Path(os.path.realpath(path))
    if not root.is_dir():
        raise BundleError(f"{path}: not a folder; a bundle is the folder that siren export wrote")
    manifest = decode(read_manifest(root, MANIFEST_FILE), str(root / MANIFEST_FILE))
    for name, spec in manifest.files.items():
        _check_size(root, name, spec)
    for graph in manifest.graphs.values():
        _check_external_data(root, graph.file, manifest)
    if verify == "full":
        for name in manifest.files:
            _check_hash(root / name, sha256(root / name), manifest, name)
    return Bundle(root, manifest, verify)


def read_manifest(root: Path, name: str) -> bytes:
    """Read a small file of the folder `root`, a real path.

    Raises:
        BundleError: it is missing, too large, no regular file, or behind a symbolic link.
    """
    size = _regular_file_size(root, name)
    check_no_pointer(root / name)
    if size > _MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{root / name}: {size} bytes, a manifest has {_MAX_MANIFEST_BYTES} at most"
        )
    return _read(root / name)


def _check_size(root: Path, name: str, spec: FileSpec) -> None:
    size = _regular_file_size(root, name)
    if size != spec.size:
        check_no_pointer(root / name)
        raise BundleError(
            f"{root / name}: {size} bytes, guard.json says {spec.size}; the bundle is damaged, "
            "copy or export it again"
        )


def check_no_pointer(path: Path, error: type[SirenError] = BundleError) -> None:
    """Refuse what git leaves where git LFS did not fetch the content.

    Raises:
        error: it is such a pointer, or cannot be read.
    """
    with ReadFailures(path, error):
        pointer = is_git_lfs_pointer(path)
    if pointer:
        raise error(f"{path}: {GIT_LFS_ADVICE}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a bundle's file in hexadecimal.

    Raises:
        BundleError: it cannot be read.
    """
    with ReadFailures(path):
        return sha256_of(path)


def _check_hash(path: Path, found: str, manifest: Manifest, name: str) -> None:
    expected = manifest.files[name].sha256
    if found != expected:
        raise BundleError(
            f"{path}: SHA-256 {found}, guard.json says {expected}; the bundle is damaged or "
            "was tampered with, copy or export it again"
        )


def _check_external_data(root: Path, graph: str, manifest: Manifest) -> None:
    path = root / graph
    if manifest.files[graph].size > _MAX_GRAPH_BYTES:
        raise BundleError(f"{path}: over {_MAX_GRAPH_BYTES} bytes; its weights must lie beside it")
    _external_files(root, graph, _read(path), manifest)


def _external_files(root: Path, graph: str, model: bytes, manifest: Manifest) -> dict[str, str]:
    """Map each location of external data in a graph to the file of the bundle that it names."""
    path, files = root / graph, {}
    try:
        locations = external_data_locations(model)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    for location in sorted(locations):
        check_relative(location, str(path))
        files[location] = str(PurePosixPath(graph).parent / location)
        if files[location] not in manifest.files:
            raise BundleError(
                f"{path}: a tensor's data is in {location!r}, which guard.json does not list"
            )
    return files


def _regular_file_size(root: Path, name: str) -> int:
    path = root / name
    try:
        if os.path.realpath(path) != str(path) and not is_blob(path, root):
            raise BundleError(f"{path}: is or passes through a symbolic link; a bundle holds none")
        status = path.stat()
    except FileNotFoundError:
        advice = "copy the whole bundle or export it again"
        inner = root / "bundle"
        if (inner / name).is_file() or (inner / "ensemble.json").is_file():
            advice = f"the folder is a guard's recipe, and its bundle is {inner}"
        if name == MANIFEST_FILE and (root / "ensemble.json").is_file():
            advice = "the folder is an ensemble, of which one of its members is taken here"
        raise BundleError(
            f"{path}: missing; {advice_where_lacking(root, name, advice=advice)}"
        ) from None
    except (OSError, ValueError) as error:
        if is_of_caller(error):
            raise
        raise BundleError(f"{path}: cannot be read: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: not a regular file")
    return status.st_size


def _read(path: Path) -> bytes:
    with ReadFailures(path):
        return path.read_bytes()
