"""A file is written whole or not at all, and one that cannot be written is named."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from halfway import Start, halfway
from siren_runtime.bundle.files import ReadFailures, replacement, sha256_of, write_whole
from siren_runtime.errors import BundleError, InputError


def save_array(path: Path) -> None:
    with replacement(path, InputError) as partial, partial.open("wb") as file:
        np.save(file, np.zeros(100_000))


def save_arrays(path: Path) -> None:
    with replacement(path, InputError) as partial, partial.open("wb") as file:
        np.savez(file, first=np.zeros(100_000), second=np.zeros(100_000))


def save_bytes(path: Path) -> None:
    write_whole(path, bytes(1 << 20), InputError)


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files of more than 64 kB, as it does any once the disk is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", [save_bytes, save_array, save_arrays])
def test_a_file_that_does_not_fit_is_named_and_the_old_one_stays(
    tmp_path: Path, small_files: None, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "train.labels.npy"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"train\.labels\.npy: cannot be written: "):
        write(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


_WRITE = """
from pathlib import Path
from siren_runtime.bundle.files import replacement
from siren_runtime.errors import InputError

with replacement(Path(sys.argv[1]), InputError) as partial:
    partial.write_text("theirs")
    print(partial, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start to write `labels.npy` in a process of that number; it waits with the file half done."""
    with halfway(_WRITE, tmp_path / "labels.npy") as begin:
        yield begin


def test_what_a_killed_process_of_another_container_left_is_removed_and_no_other(
    tmp_path: Path, start: Start
) -> None:
    process, left = start(os.getpid())  # a number that is alive here
    process.kill()
    process.wait()
    others = {".labels.npy.partial-abcd1234", ".labels.npy.7.7"}
    for name in others:
        (tmp_path / name).mkdir()
    assert left.exists()
    write_whole(tmp_path / "labels.npy", b"whole", InputError)
    assert {file.name for file in tmp_path.iterdir()} == {"labels.npy", *others}


def test_who_writes_in_another_container_is_left_alone(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "labels.npy"
    process, _ = start(99999999)  # a number that is of no process here
    write_whole(path, b"whole", InputError)
    assert path.read_bytes() == b"whole"
    process.communicate()
    assert process.returncode == 0
    assert path.read_bytes() == b"theirs"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_two_at_once_each_write_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacement(path, InputError) as partial:
        partial.write_bytes(b"first")
        write_whole(path, b"second", InputError)
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("write", [save_bytes, save_array, save_arrays])
def test_what_was_there_is_replaced_and_nothing_else_is_left(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "train.labels.npy"
    path.write_bytes(b"old")
    write(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size > 1 << 16


def test_the_error_is_of_the_kind_that_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"missing/guard\.json: cannot be written: "):
        write_whole(tmp_path / "missing" / "guard.json", b"{}", BundleError)


def test_what_the_block_raises_comes_out_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacement(path, InputError) as partial:
            partial.write_bytes(b"half")
            raise KeyError("a reason of its own")

    with pytest.raises(KeyError, match="a reason of its own"):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_an_error_of_the_caller_is_none_of_a_file(tmp_path: Path) -> None:
    """As an alarm's handler raises it amid what is read or written."""
    path = tmp_path / "file"
    with pytest.raises(TimeoutError, match=r"^of the caller$"), ReadFailures(path):
        raise TimeoutError("of the caller")
    with pytest.raises(TimeoutError, match=r"^of the caller$"), replacement(path, InputError):
        raise TimeoutError("of the caller")
    with pytest.raises(BundleError, match="file: cannot be read: No such file"), ReadFailures(path):
        path.read_bytes()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_a_digest_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    assert sha256_of(path) == hashlib.sha256(bytes(size)).hexdigest()
