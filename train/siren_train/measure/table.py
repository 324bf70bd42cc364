"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int | None = None
) -> list[str]:
    """Return the lines of a table.

    A | in a cell, as the name of a data set may have one, does not end the cell.

    Args:
        header, rows: the cells, as many in each row.
        left: how many columns are set to the left; the others are set to the right. None is all.
    """
    count = len(header) if left is None else left
    rule = ["---"] * count + ["---:"] * (len(header) - count)
    return [_line(cells) for cells in (header, rule, *rows)]


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return "|" + "|".join(f" {cell} " if cell else " " for cell in escaped) + "|"
