"""Find the folder that a source names: a local one, or a Hugging Face hub repository's snapshot."""

import errno
import json
import os
import re
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path

from siren_runtime.errors import SirenError, is_of_caller

from .files import hidden_place

_HUB = "hf://"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)  # of a disk, or a folder of another user
_REAL = "real"
_REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)


def resolve_folder(
    source: str | PathLike[str],
    *,
    revision: str | None = None,
    patterns: Sequence[str],
    error: type[SirenError],
    allow_symlinks: bool = False,
) -> Path:
    """Return the folder that `source` names, downloading it from the hub where it must.

    The hub's own settings hold: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE. A snapshot that
    is in the cache is served from there.

    Args:
        source: a local folder, returned as it is, or a hub repository id, `org/name`. What looks
            like a path is one: whatever is no str, starts with `.`, `/` or `~`, ends with `/`, has
            no slash or several, or lies in a folder that is there. `hf://org/name` is always an id.
        revision: branch, tag or commit of a hub repository; None is its main branch. A local
            folder has none, so it is not looked at there.
        patterns: shell-style patterns of the files to download; nothing else is fetched.
        error: the class of error to raise.
        allow_symlinks: the hub's cache keeps a snapshot as symlinks to its blobs. False returns
            a folder of real files instead, hard-linked to the blobs, so it takes no space; in a
            cache that cannot be written it returns the snapshot itself.

    Returns:
        The folder. That of a hub repository is named by the commit it holds.

    Raises:
        error: `source` is neither a folder nor a repository id, or cannot be downloaded.
    """
    if _is_folder(source):
        return Path(source).expanduser()
    repo_id = _repo_id(source, error)
    if revision is not None and not _REVISION.fullmatch(revision):
        raise error(
            f"hub repository {repo_id!r}: the revision {revision!r} is not a name of a branch, "
            "tag or commit"
        )
    snapshot = _download(repo_id, revision, patterns, error)
    if allow_symlinks:
        return snapshot
    try:
        return _with_real_files(snapshot, patterns)
    except OSError as failure:
        if is_of_caller(failure):
            raise
        if failure.errno in _READ_ONLY:
            return snapshot
        raise error(
            f"hub repository {repo_id!r}: its files cannot be placed in the cache: {failure}"
        ) from failure


def repository_of(folder: Path) -> str | None:
    """The id of the hub repository whose cached snapshot, or folder of real files, this is."""
    kind, owner = folder.parent, folder.parent.parent.name.split("--")
    if kind.name not in ("snapshots", _REAL) or owner[0] != "models" or len(owner) < 3:
        return None
    return "/".join(owner[1:])


def advice_where_lacking(folder: Path, *names: str, advice: str = "") -> str:
    """What to do about a file that a folder lacks: `advice`, but first to load a hub repository's
    cached snapshot whole, where it may be incomplete.

    Args:
        names: of the file, each of those that would do.
    """
    repository = repository_of(folder)
    if repository is None or not _may_have(folder, names):
        return advice
    first = (
        f"the cached snapshot of the hub repository {repository} may be incomplete: load it once "
        "with the hub in reach"
    )
    return f"{first}; where the repository has none, {advice}" if advice else first


def _may_have(snapshot: Path, names: Sequence[str]) -> bool:
    """Whether a snapshot's repository may have one of the files: the list of all that it has says
    so, or the hub's client has kept none.
    """
    try:
        kept = (snapshot.parent.parent / "trees" / f"{snapshot.name}.json").read_bytes()
    except OSError as failure:
        if is_of_caller(failure):
            raise
        return True
    return any(json.dumps(name).encode() in kept for name in names)


def is_blob(path: Path, snapshot: Path) -> bool:
    """Whether the file that `path` leads to is the cache's own content of that snapshot."""
    return repository_of(snapshot) is not None and (
        Path(os.path.realpath(path)).parent == snapshot.parent.parent / "blobs"
    )


def _is_folder(source: str | PathLike[str]) -> bool:
    try:
        return source != "" and Path(source).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError) as failure:
        if is_of_caller(failure):
            raise
        return False  # a name too long to be one; no such user; a NUL


def _repo_id(source: str | PathLike[str], error: type[SirenError]) -> str:
    """The hub id that `source` is, if it is one and cannot be taken for a path."""
    name = source.removeprefix(_HUB) if isinstance(source, str) else str(source)
    if isinstance(source, str) and _REPO_ID.fullmatch(name):
        parent = name.partition("/")[0]
        if name != source or not _is_folder(parent):
            return name
        raise error(
            f"{source!r}: there is a folder {parent!r} here and nothing of that name in it; check "
            f"the path, or for the hub repository of that name pass {_HUB + name!r}"
        )
    raise error(
        f"{str(source)!r} is neither a folder that is there nor the id of a hub repository "
        "(org/name)"
    )


def _download(
    repo_id: str, revision: str | None, patterns: Sequence[str], error: type[SirenError]
) -> Path:
    from huggingface_hub import constants, snapshot_download

    origin = (
        f"hub repository {repo_id!r} (revision {revision or constants.DEFAULT_REVISION!r}) "
        f"at {constants.ENDPOINT}"
    )

    def download(*, cached: bool) -> str:
        return snapshot_download(
            repo_id, revision=revision, allow_patterns=[*patterns], local_files_only=cached
        )

    try:
        try:
            snapshot = Path(download(cached=False))
        except OSError as failure:
            if failure.errno not in _READ_ONLY:
                raise
            snapshot = Path(download(cached=True))
    # The client lets through the errors of its HTTP and storage libraries, which change with
    # its version, so no list of classes would be complete.
    except Exception as failure:
        if is_of_caller(failure):
            raise
        raise error(f"{origin}: {_explain(failure)}") from failure
    if not snapshot.is_dir():
        raise error(f"{origin}: holds none of {', '.join(patterns)}; check the repository id")
    return snapshot


def _explain(failure: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(failure, errors.GatedRepoError):
        return (
            "access is gated; ask for it on the repository's page, then set HF_TOKEN or log in "
            "with `hf auth login`"
        )
    if isinstance(failure, errors.RepositoryNotFoundError):
        return (
            "there is no such repository, nor a local folder of that name; check the spelling, "
            "or set HF_TOKEN if the repository is private"
        )
    if isinstance(failure, errors.RevisionNotFoundError):
        return "the repository has no such revision; check the branch, tag or commit"
    incomplete = getattr(errors, "IncompleteSnapshotError", None)  # of newer versions
    if incomplete is not None and isinstance(failure, incomplete):
        return (
            "the cached snapshot is incomplete and the hub is not asked or cannot be reached; "
            "unset HF_HUB_OFFLINE and check the connection, or pass a local folder "
            f"({_first_line(failure)})"
        )
    if isinstance(failure, errors.LocalEntryNotFoundError):
        if isinstance(failure.__cause__, errors.OfflineModeIsEnabled):
            return (
                "it is not complete in the local cache and HF_HUB_OFFLINE is set; unset it, or "
                "pass a local folder"
            )
        return (
            "the hub cannot be reached and the local cache does not hold it complete; check the "
            f"connection and HF_ENDPOINT, or pass a local folder ({_first_line(failure)})"
        )
    return f"the download failed; try again, or pass a local folder ({_first_line(failure)})"


def _first_line(failure: Exception) -> str:
    text = str(failure).strip()
    return f"{type(failure).__name__}: {text.splitlines()[0]}" if text else type(failure).__name__


def _with_real_files(snapshot: Path, patterns: Sequence[str]) -> Path:
    # snapshots/<commit> is the layout of the cache, so this is beside `snapshots`, and goes when
    # the repository is removed from the cache.
    folder = snapshot.parent.parent / _REAL / snapshot.name
    for file in snapshot.rglob("*"):
        name = file.relative_to(snapshot)
        target = folder / name
        wanted = any(fnmatchcase(name.as_posix(), pattern) for pattern in patterns)
        if wanted and file.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(file.resolve(), target)
    return folder


def _link(blob: Path, target: Path) -> None:
    try:
        target.hardlink_to(blob)
    except OSError as failure:
        if is_of_caller(failure):
            raise
        # A file system without hard links, or another process was first.
        with hidden_place(target) as partial:
            shutil.copyfile(blob, partial)
            partial.replace(target)
