"""A file that cannot be written is named, and leaves nothing behind."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from siren_runtime.errors import InputError
from siren_train.store.files import replaced, write_atomically


def save_array(path: Path) -> None:
    with replaced(path) as temporary:
        np.save(temporary, np.zeros(100_000))


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files of more than 64 kB, as it does any once the disk is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", [lambda path: write_atomically(path, bytes(1 << 20)), save_array])
def test_a_file_that_does_not_fit_is_named_and_the_old_one_stays(
    tmp_path: Path, small_files: None, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "train.labels.npy"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"train\.labels\.npy: cannot be written: "):
        write(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"
