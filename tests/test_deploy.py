"""The deployment examples name options that `siren serve` has, and systemd accepts the unit."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "deploy" / "siren.service"
SIREN = Path(sys.executable).with_name("siren")


def test_options_exist():
    command = re.search(r"^ExecStart=(.*)$", UNIT.read_text(), re.M).group(1)
    done = subprocess.run([SIREN, "serve", "--help"], capture_output=True, text=True, check=True)
    options = re.findall(r"--[a-z-]+", command)
    assert options
    assert set(options) <= set(re.findall(r"--[a-z-]+", done.stdout))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/siren/bin/siren", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr, done.stderr
