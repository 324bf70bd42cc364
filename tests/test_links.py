"""Every relative link of the documentation leads somewhere, and so do names of files of code."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("*/README.md")),
    *sorted((ROOT / "engines").glob("*/README.md")),
]

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_FILE = re.compile(r"`([^`\s]+\.py)`")
# Their paths within the checkout.
PATHS = [
    f"/{path.relative_to(ROOT).as_posix()}"
    for folder in ("runtime", "export", "serve", "train", "bench", "tests")
    for path in (ROOT / folder).rglob("*.py")
]


def _links(document: Path) -> Iterator[str]:
    text = _CODE.sub("", _FENCED.sub("", document.read_text(encoding="utf-8")))
    yield from (link for link in _LINK.findall(text) if not re.match(r"[a-z]+:", link))


def _anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = _HEADING.findall(_FENCED.sub("", document.read_text(encoding="utf-8")))
    found: list[str] = []
    seen: Counter[str] = Counter()
    for heading in headings:
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.append(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return set(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(document: Path) -> None:
    for link in _links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link}: no such file"
        assert ROOT in (target, *target.parents), f"{link}: outside the checkout"
        if anchor:
            assert target.suffix == ".md", f"{link}: only Markdown has headings"
            assert anchor in _anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("document", ["docs/design.md", "train/README.md"])
def test_files_of_code_that_are_named_are_there(document: str) -> None:
    """By the end of their path, as `data/rows.py` is that of train/siren_train/data/rows.py."""
    named = _FILE.findall(_FENCED.sub("", (ROOT / document).read_text(encoding="utf-8")))
    assert named
    for name in named:
        assert any(path.endswith(f"/{name}") for path in PATHS), f"{name}: no such file"
