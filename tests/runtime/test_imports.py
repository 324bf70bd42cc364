"""What an import may load, and which package may import which."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Package -> those it may import of the five.
ARROWS = {
    "siren_runtime": set[str](),
    "siren_export": {"siren_runtime"},
    "siren_train": {"siren_runtime", "siren_export"},
    "siren_bench": {"siren_runtime", "siren_export", "siren_serve"},
    "siren_serve": {"siren_runtime"},
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


# Folder or file of a package -> those beside it that it may import. What is not named is low
# enough that all may import it, and imports none of them.
FLOORS = {
    "siren_runtime": [
        ["commands"],
        ["serving"],
        ["guard", "generation"],
        ["scoring"],
        ["streaming"],
        ["backends"],
        ["text"],
        ["bundle"],
        ["errors"],
    ],
    "siren_export": [
        ["commands"],
        ["tune"],
        ["export", "graft"],
        ["verify", "describe"],
        ["graph_writer"],
        ["bundle_writer"],
        ["guard"],
        ["passes", "families", "heads"],
        ["graph"],
        ["sources"],
    ],
    "siren_train": [["commands"], ["fit", "rollouts"], ["measure"], ["store"], ["data"]],
    "siren_bench": [
        ["cli"],
        ["commands"],
        ["reports"],
        ["gpu", "serving", "streams"],
        ["speed", "quality", "making"],
        ["peers"],
        ["engines", "subjects"],
        ["records"],
    ],
    "siren_serve": [
        ["commands"],
        ["server", "ray"],
        ["app", "protocol", "workers"],
        ["gate", "routes", "integrations"],
        ["reload"],
        ["proxy"],
        ["generation"],
        ["streams", "messages", "openai_moderation"],
        ["guards"],
        ["opening"],
        ["values", "bodies", "openapi", "openai_form", "triton"],
        [
            *("metrics", "keys", "limits", "logs", "errors", "escapes", "settings", "tls"),
            *("warming", "inbox"),
        ],
    ],
}


def _modules() -> dict[str, Path]:
    """Every module of ours by its full name."""
    found = {}
    for package in ARROWS:
        folder = ROOT / package.removeprefix("siren_")
        for path in (folder / package).rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(name: str) -> set[str]:
    """Our modules that a module imports, wherever in it, the packages they lie in left out."""
    path, names = MODULES[name], set[str]()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            inner = {f"{base}.{alias.name}" for alias in node.names}
            names |= {n for n in inner if n in MODULES} or {base}
    return {n for n in names if n in MODULES} - {name}


GRAPH = {name: _imports(name) for name in MODULES}


@pytest.mark.parametrize("package", ARROWS)
def test_imports_between_the_packages_point_one_way(package: str) -> None:
    sources = [name for name in MODULES if name.partition(".")[0] == package]
    assert sources
    for name in sources:
        ours = {found.partition(".")[0] for found in GRAPH[name]} - {package}
        assert ours <= ARROWS[package], f"{name} imports {ours}"


def _floor(package: str, name: str) -> int | None:
    """How far from the top a module's folder stands in its package; None for the package itself."""
    inner = name.split(".")[1:]
    if not inner:
        return None
    return next(i for i, floor in enumerate(FLOORS[package]) if inner[0] in floor)


@pytest.mark.parametrize("package", FLOORS)
def test_imports_between_the_folders_of_a_package_point_down(package: str) -> None:
    for name in MODULES:
        if name.partition(".")[0] != package or _floor(package, name) is None:
            continue
        for found in GRAPH[name]:
            inner = found.split(".")
            if inner[0] != package or len(inner) == 1 or inner[1] == name.split(".")[1]:
                continue
            assert _floor(package, found) > _floor(package, name), f"{name} imports {found}"


# Files that import ONNX Runtime themselves: the functions that turn its telemetry off before, what
# runs after one of them did, and a peer's worker, which has nothing of ours and sets it likewise.
OF_TELEMETRY = {
    "siren_runtime.backends.onnxruntime.providers",
    "siren_runtime.backends.onnxruntime.cuda",
    "siren_runtime.generation.engine",
    "siren_bench.peers.optimum_worker",
}


def _imports_onnxruntime(source: str) -> bool:
    """Whether code imports onnxruntime or onnxruntime_genai, but for a type checker."""
    tree = ast.parse(source)
    unread = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found = [node.module or ""]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            found = [str(value.value) for value in node.args if isinstance(value, ast.Constant)]
        else:
            continue
        names += found if id(node) not in unread else []
    return any(name.partition(".")[0].startswith("onnxruntime") for name in names)


def test_onnxruntime_is_imported_only_with_its_telemetry_off() -> None:
    importing = {
        name
        for name, path in MODULES.items()
        if _imports_onnxruntime(path.read_text(encoding="utf-8"))
    }
    assert importing == OF_TELEMETRY


@pytest.mark.parametrize(
    ("source", "imports"),
    [
        ("def f():\n    import onnxruntime as o", True),
        ("from onnxruntime.capi import x", True),
        ("import importlib\nimportlib.import_module('onnxruntime_genai')", True),
        ("if TYPE_CHECKING:\n    import onnxruntime", False),
        ("from .onnxruntime import x\nfrom siren_runtime.backends.onnxruntime import y", False),
    ],
)
def test_an_import_of_onnxruntime_is_found_where_there_is_one(source: str, imports: bool) -> None:
    assert _imports_onnxruntime(source) == imports


def test_scripts_turn_the_telemetry_of_what_runs_onnxruntime_off() -> None:
    """By the variable, since of what they run nothing of ours has set it."""
    of_scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    of_engines = [*(ROOT / "engines").glob("*.sh"), *(ROOT / "engines").glob("*/*.sh")]
    found = set()
    for path in (*of_scripts, *of_engines, *(ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if re.search(r"-m onnxruntime|import onnxruntime|\bpytest\b", text):
            found.add(path.name)
            assert "ORT_DISABLE_TELEMETRY" in text or "/lib.sh" in text, path
    assert found >= {"same-pass.sh", "same-pass.md", "test_aarch64.py", "test", "test-triton"}
    assert "ORT_DISABLE_TELEMETRY" in (ROOT / "scripts" / "lib.sh").read_text(encoding="utf-8")


def _circle(edges: dict[str, set[str]]) -> list[str]:
    """Names that lead to one another, in order; none if nothing does."""
    done, path = set[str](), list[str]()

    def visit(name: str) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        for found in sorted(edges[name]):
            if circle := visit(found):
                return circle
        path.pop()
        done.add(name)
        return []

    return next((circle for name in sorted(edges) if (circle := visit(name))), [])


def test_no_files_import_one_another_in_a_circle() -> None:
    assert len(GRAPH) > 150
    assert not _circle(GRAPH)


def _folder(name: str) -> str:
    """A module's folder; what lies on the top level of a package stands for itself."""
    folder = name.rpartition(".")[0]
    return folder if "." in folder else name


def test_no_folders_import_one_another_in_a_circle() -> None:
    folders: dict[str, set[str]] = {_folder(name): set() for name in GRAPH}
    for name, found in GRAPH.items():
        if MODULES[name].name != "__init__.py":
            folders[_folder(name)] |= {_folder(other) for other in found} - {_folder(name)}
    assert not _circle(folders)


@pytest.mark.parametrize(
    ("edges", "circle"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c"]),
        ({"a": {"a"}}, ["a"]),
    ],
)
def test_a_circle_is_found_where_there_is_one(
    edges: dict[str, set[str]], circle: list[str]
) -> None:
    assert _circle(edges) == circle


def test_few_things_stand_on_the_top_level_of_the_runtime() -> None:
    """Beside what makes it a package that is typed."""
    entries = {path.name for path in (ROOT / "runtime" / "siren_runtime").iterdir()}
    assert len(entries - {"__init__.py", "py.typed", "__pycache__"}) <= 10


@pytest.mark.parametrize(
    "folder", ["bench", "engines", "export", "runtime", "scripts", "serve", "tests", "train"]
)
def test_no_file_has_over_400_lines(folder: str) -> None:
    # bench/.work holds the environments of peers.
    files = [path for path in (ROOT / folder).rglob("*.py") if ".work" not in path.parts]
    assert files
    for path in files:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{path} has {lines} lines"
