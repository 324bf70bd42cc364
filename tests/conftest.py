"""Fixtures that every folder of tests shares: tiny models, made once a session."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backbones import BACKBONES
from models import make_backbone

torch.set_num_threads(1)  # for tiny models, a second thread only costs


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of that tiny backbone of backbones.BACKBONES; do not change it."""

    @functools.cache
    def make(name: str) -> Path:
        return make_backbone(tmp_path_factory.mktemp(name), BACKBONES[name])

    return make
