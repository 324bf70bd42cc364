"""A head that is written where another lies: never does what was of one lie beside the other."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polynomials import make_polynomial
from siren_export.heads import base
from siren_export.heads.decision_file import write_decision
from siren_export.heads.exits import exit_folder
from siren_export.heads.mlp import Dense
from siren_export.heads.mlp_artifact import write_mlp_artifact
from siren_export.heads.registry import load_artifact
from siren_export.heads.selected import LayerSelection
from siren_runtime.bundle.heads import Decision
from siren_runtime.errors import ArtifactError, InputError
from trajectories import make_trajectory_head

DECISION = Decision(threshold=0.4)
REPORTS = "training.json", "training.md", "layers.png", "held-out.md", "ablation.md", "ablation.png"
MORE = {"decision.json", "exits", *REPORTS}
HEAD = {"siren.safetensors", "siren_config.json"}
OTHERS = {"NOTICE", "README.md", ".work", "categories"}


def write_mlp(folder: Path, *, seed: int = 0, threshold: float = 0.5, channel: int = 0) -> Path:
    weight = np.random.default_rng(seed).normal(size=(2, 1))
    write_mlp_artifact(
        folder,
        model_id="org/backbone",
        pooling="residual_mean",
        layers=[LayerSelection(1, np.array([channel]), 1.0)],
        dense=[Dense(weight.astype(np.float32), np.zeros(2, np.float32))],
        max_length=32,
        threshold=threshold,
    )
    return folder


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A head with all that may lie beside one."""
    folder = write_mlp(tmp_path / "head")
    write_decision(folder, DECISION)
    write_mlp(exit_folder(folder, 1), seed=1)
    for name in (*REPORTS, "NOTICE", "README.md"):
        (folder / name).touch()
    for name in (".work", "categories"):
        (folder / name).mkdir()
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_same_weights_leave_all_that_is_theirs(full: Path) -> None:
    before = names(full)
    write_mlp(full, threshold=0.7)
    assert names(full) == before == HEAD | MORE | OTHERS
    assert load_artifact(full).decision == DECISION


def test_other_weights_of_any_kind_take_it_away_and_say_so(
    full: Path, backbone_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    backbone = backbone_folder("bert")
    kinds: list[Callable[[], Path]] = [
        lambda: write_mlp(full, seed=2),
        lambda: make_polynomial(full, backbone),
        lambda: make_trajectory_head(full, backbone),
    ]
    for write in kinds:
        write_mlp(full)
        for name in REPORTS:
            (full / name).touch()
        write_decision(full, DECISION)
        write_mlp(exit_folder(full, 1), seed=1)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            write()
        assert names(full) == HEAD | OTHERS
        assert load_artifact(full).decision.threshold == 0.5
        (message,) = caplog.messages
        assert all(name in message for name in MORE)


def test_one_that_is_stopped_between_its_files_is_no_head(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else new weights would read the neurons that the config of before names."""

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(base, "write_whole", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_mlp(full, seed=2, channel=3)
    assert names(full) == {"siren.safetensors"} | OTHERS
    with pytest.raises(ArtifactError, match=r"siren_config\.json"):
        load_artifact(full)
    (layer,) = load_artifact(write_mlp(full, seed=2, channel=3)).head.layers  # type: ignore[attr-defined]
    assert layer.channels.tolist() == [3]


def test_one_that_finds_no_room_leaves_the_head_that_was_there(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base, "write_durably", full_disk)
    with pytest.raises(InputError, match=r"siren\.safetensors: cannot be written: No space left"):
        write_mlp(full, seed=2)
    assert names(full) == HEAD | MORE | OTHERS
    assert load_artifact(full).decision == DECISION
