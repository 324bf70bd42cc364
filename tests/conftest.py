"""Fixtures that every folder of tests shares: tiny models, made once a session."""

import functools
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # several tests import ONNX Runtime themselves

import pytest
import torch
from hypothesis import HealthCheck, settings

from backbones import BACKBONES
from models import make_backbone

torch.set_num_threads(1)  # for tiny models, a second thread only costs
# No test hangs on how fast the machine is.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over all that was imported, which stays to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """Nothing here cuts the power, and each bundle would wait for the disk several times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of that tiny backbone of backbones.BACKBONES; do not change it."""

    @functools.cache
    def make(name: str) -> Path:
        return make_backbone(tmp_path_factory.mktemp(name), BACKBONES[name])

    return make
