"""The tiny bundle, whole for the session or fresh for a test that damages it."""

import shutil
from pathlib import Path

import pytest

from siren_runtime import Guard
from siren_runtime.text.reading import AS_LLM_SIREN
from tiny_bundle import make_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole bundle; do not change it."""
    return make_bundle(tmp_path_factory.mktemp("tiny") / "bundle", scale=2.0)


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle that the test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def guard(bundle: Path) -> Guard:
    return Guard.load(bundle, threads=1, **AS_LLM_SIREN)
