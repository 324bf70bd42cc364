"""Which folder of siren_export may import which: arrows that run one way."""

import ast
from pathlib import Path

import pytest

import siren_export

ROOT = Path(siren_export.__file__).parent

# Folder -> those it may import of the others.
ARROWS = {
    "sources": set[str](),
    "graph": {"sources"},
    "families": {"graph"},
    "heads": {"graph", "sources"},
    "guard": {"families", "graph", "heads", "sources"},
    "passes": {"graph", "sources"},
    "verify": {"heads", "passes", "sources"},
    "tune": {"families", "graph", "guard", "heads", "passes", "sources", "verify"},
    "commands": {"heads", "passes", "sources", "tune", "verify"},
}


def imports(source: Path) -> set[str]:
    """The folders of siren_export that a file names in an import, at any place in it."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    parts = (name.split(".") for name in names)
    return {part[1] for part in parts if part[0] == "siren_export" and len(part) > 1} & set(ARROWS)


def test_every_folder_has_its_arrows():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(ARROWS)


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_between_the_folders_point_one_way(folder):
    for source in (ROOT / folder).glob("*.py"):
        found = imports(source) - {folder}
        assert found <= ARROWS[folder], f"{source} imports {found}"
