"""Certificates for a server on the loopback and for its clients."""

import shutil
import subprocess
from pathlib import Path

import pytest


def certify(folder: Path, name: str, *options: str) -> None:
    """Write NAME.key and NAME.pem; `options` are those of `openssl req -x509`."""
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes certificates, is not installed")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
        f"-keyout {name}.key -out {name}.pem -subj /CN={name}"
    )
    subprocess.run([*command.split(), *options], cwd=folder, check=True, capture_output=True)
