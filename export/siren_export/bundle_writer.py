"""Write a bundle into a hidden folder beside its place, then rename it there: all or nothing."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siren_runtime.bundle.files import is_running, write_durably
from siren_runtime.bundle.manifest import MANIFEST_FILE, FileSpec, Manifest, encode
from siren_runtime.errors import BundleError

WEIGHTS_FILE = "weights.bin"


@contextmanager
def staging(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `output` when the block ends without an error.

    The block writes guard.json last, so that a folder left behind by a killed export is no
    bundle; the next export to the same place removes it.

    Raises:
        BundleError: `output` exists and is not to be replaced, or cannot be written.
    """
    check_output(output, overwrite=overwrite)
    with _hidden(output, "partial") as folder:
        yield folder
        _put(folder, output.absolute())


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside `output`, on its disk, and remove it afterwards.

    Raises:
        BundleError: it cannot be written.
    """
    with _hidden(output, "scratch") as folder:
        yield folder


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
    write_durably(path, data)
    return FileSpec(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write guard.json, which makes the folder a bundle."""
    write_file(folder / MANIFEST_FILE, encode(manifest))


@contextmanager
def _hidden(output: Path, purpose: str) -> Iterator[Path]:
    place = output.absolute()
    folder = _beside(place, purpose)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(place)
        folder.mkdir()
        yield folder
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):
            raise  # of a library, or of who watches: no file was refused
        raise BundleError(f"{output}: the bundle cannot be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, output: Path) -> None:
    """Rename `folder` to `output`; what is there is put back if that fails, or else removed."""
    if not output.exists():
        folder.rename(output)
        return
    replaced = _beside(output, "replaced")
    try:
        output.rename(replaced)
        folder.rename(output)
    finally:
        if os.path.lexists(output):
            _remove(replaced)
        else:
            replaced.rename(output)


def _beside(output: Path, purpose: str) -> Path:
    return output.parent / f".{output.name}.{purpose}-{os.getpid()}"


def _remove_leftovers(output: Path) -> None:
    """Remove what killed exports to `output` left beside it."""
    name = re.compile(rf"\.{re.escape(output.name)}\.(?:partial|replaced|scratch)-([0-9]{{1,9}})")
    for path in output.parent.iterdir():
        match = name.fullmatch(path.name)
        if match and not is_running(int(match[1])):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
