"""The pages of the shipped guards show what their evaluations found."""

import json
from pathlib import Path
from typing import Any

import pytest

ENGINES = Path(__file__).parents[2] / "engines"
FIGURES = {
    "rows": "rows",
    "macro-F1": "macro_f1",
    "recall": "recall",
    "AUROC": "auroc",
    "calibration error": "expected_calibration_error",
}


def evaluation(guard: str) -> dict[str, Any]:
    path = ENGINES / guard / "evaluation" / "evaluation.json"
    return json.loads(path.read_text(encoding="utf-8"))


def table(guard: str, first: str) -> dict[str, dict[str, str]]:
    """The first table of a guard's page whose first column is so headed: by row and by column."""
    page = (ENGINES / guard / "README.md").read_text(encoding="utf-8")
    lines = page[page.index(f"| {first} |") :].partition("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


@pytest.mark.parametrize("guard", ["minilm", "smollm2", "gemma3-270m", "pair"])
def test_a_card_has_the_figures_of_the_evaluation(guard: str) -> None:
    rows, found = table(guard, "data set"), evaluation(guard)
    mean = rows.pop("mean")
    assert mean["macro-F1"] == shown(found["mean_macro_f1"])
    assert [*rows] == [*found["by_dataset"]]
    members = [column.removeprefix("of ") for column in mean if column.startswith("of ")]
    assert len(members) == (2 if guard == "pair" else 0)
    for member in members:
        assert mean[f"of {member}"] == shown(evaluation(member)["mean_macro_f1"])
    for name, metrics in found["by_dataset"].items():
        expected = {column: shown(metrics[field]) for column, field in FIGURES.items()}
        for member in members:
            of_member = evaluation(member)["by_dataset"][name]["macro_f1"]
            expected[f"of {member}"] = shown(of_member)
        assert rows[name] == expected, name
