"""Whether the files of a grafted folder are those that were grafted."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from siren_runtime.bundle.arguments import check_choice
from siren_runtime.bundle.files import ReadFailures
from siren_runtime.bundle.reader import Verify, check_no_pointer, sha256
from siren_runtime.errors import BundleError

from .folder import read_folder
from .manifest import HEAD_FILE, GraftManifest


def check_files(path: Path, manifest: GraftManifest, verify: Verify) -> None:
    """Compare the sizes of all files with guard.json, and the SHA-256 of all but the weights and
    the head, which `read_head` and `weights_checked` compare.

    Args:
        verify: "size" compares no SHA-256.

    Raises:
        BundleError: a file is missing, or another than was grafted.
        InputError: `verify` is none of what it may be.
    """
    check_choice("verify", verify, get_args(Verify))
    for name, spec in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"{file}: missing; copy the whole folder or graft it again")
        if (found := file.stat().st_size) != spec.size:
            check_no_pointer(file)
            raise _another(file, f"{found:,} bytes, not the {spec.size:,}")
        if verify != "size" and name not in (HEAD_FILE, *manifest.weights):
            _check_hash(path, name, sha256(file), manifest)
    missing = [name for name in read_folder(path).weights if name not in manifest.files]
    if missing:
        raise BundleError(f"{path}: guard.json lacks the weights {missing[0]!r} of the graph")


def read_head(path: Path, manifest: GraftManifest, verify: Verify) -> bytes:
    """The bytes of head.onnx, of which the SHA-256 is guard.json's.

    Args:
        verify: "size" compares no SHA-256.

    Raises:
        BundleError: it cannot be read, or is another than was grafted.
    """
    with ReadFailures(path / HEAD_FILE):
        data = (path / HEAD_FILE).read_bytes()
    if verify != "size":
        _check_hash(path, HEAD_FILE, hashlib.sha256(data).hexdigest(), manifest)
    return data


@contextmanager
def weights_checked(path: Path, manifest: GraftManifest, verify: Verify) -> Iterator[None]:
    """Compare the SHA-256 of the weights on another thread, while the block opens them.

    Raises:
        BundleError: one has another than guard.json says; also where the block fails.
    """
    from concurrent.futures import ThreadPoolExecutor  # slow to import, so not with the module

    names = [] if verify == "size" else [n for n in manifest.files if n in manifest.weights]
    with ThreadPoolExecutor(1, "siren-sha256") as pool:
        digests = {name: pool.submit(sha256, path / name) for name in names}
        try:
            yield
        finally:  # that a file is damaged says more than what came of it
            for name, digest in digests.items():
                _check_hash(path, name, digest.result(), manifest)


def _check_hash(path: Path, name: str, found: str, manifest: GraftManifest) -> None:
    if found != manifest.files[name].sha256:
        raise _another(path / name, f"SHA-256 {found}, not that")


def _another(file: Path, found: str) -> BundleError:
    return BundleError(
        f"{file}: {found} of the file that was grafted; where the model was built anew, graft it "
        "again, else copy the folder again"
    )
