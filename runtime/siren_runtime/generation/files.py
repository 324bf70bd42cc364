"""Whether the files of a grafted folder are those that were grafted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from siren_runtime.bundle.arguments import check_choice
from siren_runtime.bundle.reader import Verify, sha256
from siren_runtime.errors import BundleError

from .folder import read_folder
from .manifest import GraftManifest


def check_files(path: Path, manifest: GraftManifest, verify: Verify) -> None:
    """Compare the sizes of all files with guard.json, and the SHA-256 of all but the weights.

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
            raise _another(file, f"{found:,} bytes, not the {spec.size:,}")
        if verify != "size" and name not in manifest.weights:
            _check_hash(path, name, manifest)
    missing = [name for name in read_folder(path).weights if name not in manifest.files]
    if missing:
        raise BundleError(f"{path}: guard.json lacks the weights {missing[0]!r} of the graph")


@contextmanager
def weights_checked(path: Path, manifest: GraftManifest, verify: Verify) -> Iterator[None]:
    """Compare the SHA-256 of the weights on another thread, while the block opens them.

    Raises:
        BundleError: one has another than guard.json says; also where the block fails.
    """
    from concurrent.futures import ThreadPoolExecutor  # slow to import, so not with the module

    names = [] if verify == "size" else [n for n in manifest.files if n in manifest.weights]
    with ThreadPoolExecutor(1, "siren-sha256") as pool:
        checks = [pool.submit(_check_hash, path, name, manifest) for name in names]
        try:
            yield
        finally:  # that a file is damaged says more than what came of it
            for check in checks:
                check.result()


def _check_hash(path: Path, name: str, manifest: GraftManifest) -> None:
    found = sha256(path / name)
    if found != manifest.files[name].sha256:
        raise _another(path / name, f"SHA-256 {found}, not that")


def _another(file: Path, found: str) -> BundleError:
    return BundleError(
        f"{file}: {found} of the file that was grafted; where the model was built anew, graft it "
        "again, else copy the folder again"
    )
