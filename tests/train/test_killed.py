"""A training that is killed, really killed, ends as one that was not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "killed_training.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_five_kills_at_random_points_change_nothing(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(backbone_folder("bert")), "5"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["killed"]) == 5
    assert set(found["killed"]) <= {"extraction", "probes", "search"}
    assert found["finished"] >= 1
    assert found["equal"]
