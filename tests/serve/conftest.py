"""The tiny bundle behind HTTP, for all tests of a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from served import Running, running
from siren_runtime import Guard
from tiny_bundle import make_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole bundle; do not change it."""
    return make_bundle(tmp_path_factory.mktemp("served") / "bundle", scale=2.0)


@pytest.fixture(scope="session")
def guard(bundle: Path) -> Guard:
    return Guard.load(bundle, threads=1)


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Running]:
    with running({"tiny": str(bundle), "other": str(bundle)}) as served:
        yield served
