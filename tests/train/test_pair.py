"""engines/pair/make.sh takes ensemble.json for the heads and decisions that it was chosen with."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKE = Path(__file__).parents[2] / "engines" / "pair" / "make.sh"
MEMBERS = ("minilm", "gemma3-270m")
HARM = ("siren.safetensors", "siren_config.json", "decision.json")
PARTS = (*HARM, *(f"categories/{name}" for name in HARM))
# Says what it was asked for, and writes what an export or a calibration does.
SIREN = """#!/usr/bin/env bash
echo "$1 $2"
case $1 in
    export) mkdir -p "$6" && echo "$2" > "$6/guard.json" ;;
    calibrate) echo chosen > "$2/ensemble.json" ;;
esac
"""

pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("sha256sum")), reason="no bash, or no sha256sum"
)


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """Guards of a few bytes, and a pair that was made of them."""
    engines = tmp_path / "engines"
    for member in MEMBERS:
        for part in PARTS:
            path = engines / member / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{member} {part}")
            os.utime(path, (1, 1))  # long before any bundle
    (engines / "pair").mkdir()
    shutil.copy(MAKE, engines / "pair")
    (engines / "pair" / "ensemble.json").write_text("old")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "siren"
    command.write_text(SIREN)
    command.chmod(0o755)
    first = make(engines, "data.jsonl")
    assert first.returncode == 0, first.stderr
    return engines


def make(engines: Path, *data: str) -> subprocess.CompletedProcess[str]:
    path = f"{engines.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", engines / "pair" / "make.sh", *data]
    return subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )


def test_an_unchanged_pair_is_not_made_again(engines: Path) -> None:
    done = make(engines)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (engines / "pair" / "ensemble.json").read_text() == "chosen\n"


@pytest.mark.parametrize("part", HARM)
def test_thresholds_of_other_heads_or_decisions_are_refused(engines: Path, part: str) -> None:
    (engines / "gemma3-270m" / part).write_text("another")
    refused = make(engines)
    assert refused.returncode == 1
    assert part in refused.stderr
    assert "other heads or decisions; calibrate anew" in refused.stderr
    done = make(engines, "data.jsonl")
    assert done.returncode == 0, done.stderr
    assert make(engines).returncode == 0


def test_a_decision_that_is_gone_is_refused(engines: Path) -> None:
    (engines / "minilm" / "decision.json").unlink()
    refused = make(engines)
    assert refused.returncode == 1
    assert "decision.json" in refused.stderr


def test_a_head_of_categories_has_no_part_in_the_thresholds(engines: Path) -> None:
    (engines / "minilm" / "categories" / "decision.json").unlink()
    assert make(engines).returncode == 0


@pytest.mark.parametrize("part", PARTS)
def test_a_guard_that_is_older_than_its_head_is_exported_anew(engines: Path, part: str) -> None:
    later = (engines / "pair" / "bundle" / "minilm" / "guard.json").stat().st_mtime + 10
    os.utime(engines / "minilm" / part, (later, later))
    done = make(engines)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "export minilm\n"
