"""Write a bundle into a hidden folder beside its place, then rename it there: all or nothing."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siren_runtime.errors import BundleError
from siren_runtime.manifest import MANIFEST_FILE, FileSpec, Manifest, encode

WEIGHTS_FILE = "weights.bin"


@contextmanager
def staging(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `output` when the block ends without an error.

    The block writes guard.json last, so that a folder left behind by a killed export is no
    bundle; the next export to the same place removes it.

    Raises:
        BundleError: `output` exists and is not to be, or cannot be, replaced.
    """
    check_output(output, overwrite=overwrite)
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.parent / f".{output.name}.partial-{os.getpid()}"
    replaced = output.parent / f".{output.name}.replaced-{os.getpid()}"
    _remove_leftovers(output)
    folder.mkdir()
    try:
        yield folder
        if output.exists():
            output.rename(replaced)
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside `output`, on its disk, and remove it afterwards."""
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(output)
    folder = output.parent / f".{output.name}.scratch-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a place where a bundle would destroy something else.

    Raises:
        BundleError: `output` exists, and is no bundle or `overwrite` is not given.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST_FILE).is_file():
        raise BundleError(f"{output} exists and is not a bundle; choose another output folder")
    if not overwrite:
        raise BundleError(f"{output} exists; give --overwrite to replace it")


def write_file(path: Path, data: bytes) -> FileSpec:
    """Write a small file durably and describe it for the manifest."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileSpec(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write guard.json, which makes the folder a bundle."""
    write_file(folder / MANIFEST_FILE, encode(manifest))


def _remove_leftovers(output: Path) -> None:
    """Remove the hidden folders that killed exports to `output` left."""
    for leftover in output.parent.glob(f".{output.name}.*-*"):
        pid = leftover.name.rpartition("-")[2]
        if pid.isdecimal() and not _is_running(int(pid)):
            shutil.rmtree(leftover)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
