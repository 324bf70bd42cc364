"""What rows leave unsaid of the labels of a guard's heads, for people."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from siren_runtime.commands.console import report

if TYPE_CHECKING:
    from siren_train.measure.evaluate import Scores


def say_unnamed(scores: "Scores", labels: Mapping[str, Iterable[str]]) -> None:
    """Say where the rows' categories name none of a head's labels, and how many rows that leaves
    out of what is measured or calibrated of them.

    Args:
        labels: of the heads, by their names.
    """
    for head, names in labels.items():
        what = f"a label of the head {head!r} ({', '.join(names)})"
        found = next((one for one in scores.heads if one.head == head), None)
        if found is None:
            report(f"no row names {what} in its category, so they are not measured")
            continue
        named = set(scores.datasets[found.rows][found.truth.any(axis=1)].tolist())
        harmful = dict.fromkeys(scores.datasets[scores.harmful].tolist())
        if unnamed := [name for name in harmful if name not in named]:
            report(f"{', '.join(unnamed)}: no row names {what}")
        if left_out := len(scores.scores) - len(found.rows):
            report(
                f"{left_out} of {len(scores.scores)} rows say nothing of {what}: they are harmful "
                "and name none, so its labels are taken of the rest"
            )
