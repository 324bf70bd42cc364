"""The tiny bundle and a model server for those into which the guard is plugged."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from guards import extreme_letters
from siren_runtime import Guard
from tiny_bundle import make_bundle
from upstream import ModelServer, model_server


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole bundle; do not change it."""
    return make_bundle(tmp_path_factory.mktemp("plugged") / "bundle", scale=2.0)


@pytest.fixture(scope="session")
def guard(bundle: Path) -> Guard:
    return Guard.load(bundle, threads=1)


@pytest.fixture(scope="session")
def letters(guard: Guard) -> tuple[str, str]:
    return extreme_letters(guard)


@pytest.fixture(scope="module")
def upstream() -> Iterator[ModelServer]:
    with model_server() as server:
        yield server
