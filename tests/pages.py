"""What the pages under docs/ tell their readers to paste."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def block(page: str, section: str, language: str) -> str:
    """The only code block of a language in a section of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n## {section}\n")
    assert found, f"{page} has no section {section!r}"
    (only,) = re.findall(rf"```{language}\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)
    return str(only)
