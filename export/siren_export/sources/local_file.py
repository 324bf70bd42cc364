"""Read the small files of an artifact or checkpoint whole, bounded in size, with clear errors."""

from pathlib import Path
from typing import TypeVar

import msgspec

from siren_runtime.bundle.files import GIT_LFS_ADVICE, ReadFailures, is_git_lfs_pointer
from siren_runtime.bundle.hub import advice_where_lacking
from siren_runtime.errors import SirenError

T = TypeVar("T")

MAX_JSON_BYTES = 16 << 20


def check_is_file(path: Path, error: type[SirenError]) -> None:
    """Refuse what is not a regular file: reading a pipe or device could block or never end.

    And refuse a git LFS pointer, which holds where the file's content is and none of it.

    Raises:
        error: there is no such file, it is a folder, pipe, device or git LFS pointer, or it cannot
            be read.
    """
    with ReadFailures(path, error):
        if not path.exists():
            advice = advice_where_lacking(path.parent, path.name)
            raise error(f"{path}: there is no such file" + (f"; {advice}" if advice else ""))
        if not path.is_file():
            raise error(f"{path}: it is not a regular file")
        if is_git_lfs_pointer(path):
            raise error(f"{path}: {GIT_LFS_ADVICE}")


def read_bytes(path: Path, error: type[SirenError], *, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises:
        error: there is no such file, it is not a regular one, is larger, or cannot be read.
    """
    check_is_file(path, error)
    with ReadFailures(path, error):
        size = path.stat().st_size
        if size > limit:
            raise error(f"{path}: {size:,} bytes; a sane file of this kind has at most {limit:,}")
        return path.read_bytes()


def read_json(path: Path, kind: type[T], error: type[SirenError]) -> T:
    """Decode a JSON file as the type `kind`, strictly: "1" is no int and NaN is no number.

    Raises:
        error: the file cannot be read, is not JSON, nests too deeply, or does not fit `kind`;
            the message holds the path of the value at fault, such as `$.mlp.input_dim`.
    """
    data = read_bytes(path, error, limit=MAX_JSON_BYTES)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as failure:
        raise error(f"{path}: {failure}") from failure
    except RecursionError:
        raise error(f"{path}: the JSON nests too deeply") from None
