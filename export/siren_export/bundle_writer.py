"""Write a bundle into a hidden folder beside its place, then rename it there: all or nothing."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from siren_runtime.backends.tensorrt.plan import PLANS_FOLDER
from siren_runtime.bundle.files import hidden_place, write_durably
from siren_runtime.bundle.manifest import MANIFEST_FILE, FileSpec, Manifest, encode
from siren_runtime.errors import BundleError, is_of_caller
from siren_runtime.generation.manifest import is_grafted

WEIGHTS_FILE = "weights.bin"


@contextmanager
def staging(output: Path, *, overwrite: bool, grafted: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `output` when the block ends without an error.

    The block writes guard.json last, so that a folder left behind by a killed export is no
    bundle; the next export to the same place removes it.

    Args:
        overwrite, grafted: as `check_output`, which is asked at the beginning and at the end.

    Raises:
        BundleError: `output` is not to be replaced, or cannot be written.
    """
    check_output(output, overwrite=overwrite, grafted=grafted)
    with scratch(output) as folder:
        yield folder
        check_output(output, overwrite=overwrite, grafted=grafted)
        _put(folder, output.absolute(), overwrite=overwrite)


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside `output`, on its disk, and remove it afterwards.

    Raises:
        BundleError: it cannot be written.
    """
    place = output.absolute()
    with _failures(output):
        place.parent.mkdir(parents=True, exist_ok=True)
        with hidden_place(place) as folder:
            folder.mkdir()
            yield folder


def check_output(output: Path, *, overwrite: bool, grafted: bool = False) -> None:
    """Refuse a place where a bundle cannot be put, or would destroy something else.

    Args:
        overwrite: a bundle that is there may be replaced.
        grafted: what is put there is a grafted generator, which replaces no other bundle, and
            which no other replaces.

    Raises:
        BundleError: what is at `output` is not to be replaced, or nothing can be written there.
    """
    place = output.absolute()
    if (place / MANIFEST_FILE).is_file():
        _check_bundle(output, overwrite=overwrite, grafted=grafted)
    elif place.is_symlink():
        raise BundleError(f"{output} is a link, and not to a bundle; name a folder itself")
    elif place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise BundleError(f"{output} exists and is not a bundle; choose another output folder")
    if place.is_mount():
        raise BundleError(
            f"{output} is a mount point, which no folder can take the place of; name one in it, "
            f"such as {output / 'guard'}"
        )
    there = next(folder for folder in place.parents if os.path.lexists(folder))
    with _failures(output), hidden_place(there / place.name) as folder:
        folder.mkdir()


def write_file(path: Path, data: bytes) -> FileSpec:
    """Write a small file durably and describe it for the manifest."""
    write_durably(path, data)
    return FileSpec(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write guard.json, which makes the folder a bundle."""
    write_file(folder / MANIFEST_FILE, encode(manifest))


class _Listed(msgspec.Struct):
    """The files of a bundle or a grafted generator, whatever its format version."""

    files: dict[str, object]


def _check_bundle(output: Path, *, overwrite: bool, grafted: bool) -> None:
    """Refuse to replace a bundle of another kind, or one whose folder holds more than a bundle."""
    if is_grafted(output) != grafted:
        there = "no grafted generator" if grafted else "a grafted generator"
        raise BundleError(f"{output} exists and is {there}; choose another output folder")
    if not overwrite:
        raise BundleError(f"{output} exists; give --overwrite to replace it")
    try:
        listed = msgspec.json.decode((output / MANIFEST_FILE).read_bytes(), type=_Listed).files
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if is_of_caller(error):
            raise
        raise BundleError(
            f"{output / MANIFEST_FILE}: does not say what the bundle holds, so that other files "
            f"beside it could be lost ({error}); remove the folder, or choose another"
        ) from None
    known = {MANIFEST_FILE, PLANS_FOLDER, *(name.split("/")[0] for name in listed)}
    if others := sorted({path.name for path in output.iterdir()} - known):
        raise BundleError(
            f"{output} holds {', '.join(map(repr, others[:5]))} beside the bundle, which would be "
            "lost; move that away, or choose another output folder"
        )
    if not (output.is_symlink() or os.access(output, os.W_OK)):
        raise BundleError(f"{output} cannot be replaced, since it may not be written")


@contextmanager
def _failures(output: Path) -> Iterator[None]:
    """Raise what the system raises in the block as an error that names `output`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):
            raise  # of a library, or of who watches: no file was refused
        raise BundleError(f"{output}: the bundle cannot be written: {error}") from error


def _put(folder: Path, output: Path, *, overwrite: bool) -> None:
    """Rename `folder` to `output`, over nothing or an empty folder, or over the bundle that is
    there, which is put back if that fails.
    """
    if not overwrite:
        folder.rename(output)
        return
    replaced = folder.with_name("replaced")
    try:
        if os.path.lexists(output):
            output.rename(replaced)
        folder.rename(output)
    finally:
        if os.path.lexists(replaced) and not os.path.lexists(output):
            replaced.rename(output)
