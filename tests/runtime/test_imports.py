"""What an import may load, and which package may import which."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Package -> those it may import of the four.
ARROWS = {
    "siren_runtime": set[str](),
    "siren_export": {"siren_runtime"},
    "siren_train": {"siren_runtime", "siren_export"},
    "siren_bench": {"siren_runtime", "siren_export"},
}


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def _modules_after(statement: str) -> set[str]:
    modules = json.loads(
        _python(f"{statement}\nimport json, sys\nprint(json.dumps([*sys.modules]))")
    )
    return {name.partition(".")[0] for name in modules}


def test_importing_the_runtime_loads_no_engine_and_no_training_framework() -> None:
    loaded = _modules_after("from siren_runtime import Guard, ScoreResult, SirenError, __version__")
    heavy = {"torch", "transformers", "huggingface_hub", "onnxruntime", "tokenizers", "onnx"}
    assert not loaded & (heavy | {"rich", "typer", "requests", "httpx"})


def test_scoring_loads_no_training_framework(bundle: Path) -> None:
    loaded = _modules_after(
        f"from siren_runtime import Guard\nGuard.load({str(bundle)!r}).score('hello')"
    )
    assert {"onnxruntime", "tokenizers"} <= loaded
    assert not loaded & {"torch", "transformers", "onnx", "safetensors"}


def test_importing_the_runtime_is_quick() -> None:
    """Processor seconds beyond numpy, the least of three, so that a busy machine does not count."""
    code = (
        "import time, numpy\nstart = time.process_time()\nimport siren_runtime\n"
        "print(time.process_time() - start)"
    )
    assert min(float(_python(code)) for _ in range(3)) < 0.25


def _imports(source: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", ARROWS)
def test_imports_between_the_packages_point_one_way(package: str) -> None:
    folder = ROOT / package.removeprefix("siren_") / package
    sources = [*folder.rglob("*.py")]
    assert sources
    for source in sources:
        ours = {name for name in _imports(source) if name in ARROWS} - {package}
        assert ours <= ARROWS[package], f"{source} imports {ours}"
