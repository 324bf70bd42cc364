"""The tiny bundle behind HTTP, for all tests of a file."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from guards import extreme_letters
from proxied import Proxies
from served import Running, running
from siren_runtime import Guard
from tiny_bundle import make_bundle
from upstream import ModelServer, model_server


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole bundle; do not change it."""
    return make_bundle(tmp_path_factory.mktemp("served") / "bundle", scale=2.0)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A bundle with other scores."""
    return make_bundle(tmp_path / "other", scale=5.0)


@pytest.fixture(scope="session")
def guard(bundle: Path) -> Guard:
    return Guard.load(bundle, threads=1)


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Running]:
    with running({"tiny": str(bundle), "other": str(bundle)}) as served:
        yield served


@pytest.fixture(scope="module")
def upstream() -> Iterator[ModelServer]:
    with model_server() as server:
        yield server


@pytest.fixture(scope="module")
def proxies(bundle: Path, upstream: ModelServer) -> Iterator[Proxies]:
    with ExitStack() as stack:
        yield Proxies(bundle, upstream, stack)


@pytest.fixture(scope="module")
def letters(guard: Guard) -> tuple[str, str]:
    return extreme_letters(guard)
