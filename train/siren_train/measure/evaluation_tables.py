"""The tables of an evaluation, as Markdown."""

import numpy as np

from siren_train.data.benchmarks import PAPER

from .categories import categories_markdown
from .evaluate import Evaluation
from .exit_evaluation import exits_markdown
from .metrics import BinaryMetrics
from .order_evaluation import orders_markdown
from .stated import read_told, told
from .table import markdown_table


def evaluation_markdown(evaluation: Evaluation) -> str:
    """Return the tables of an evaluation, as Markdown."""
    lines = [
        f"# Evaluation on the {evaluation.split} split",
        "",
        f"Guard: {' + '.join(evaluation.bundles)}; {_of_head(evaluation.head)}"
        f"{thresholds_of(evaluation)}; "
        f"**mean macro-F1 {evaluation.mean_macro_f1:.4f}**"
        f"{read_told(evaluation.long_text, evaluation.spans)}.",
        *_sampled(evaluation.max_rows),
        "",
        *_table("data set", evaluation.by_dataset),
    ]
    for name, categories in evaluation.by_category.items():
        if groups := evaluation.by_group.get(name):
            title = f"{name} by group, what several of its categories have before a colon:"
            lines += ["", title, "", *_table("group", groups)]
        lines += ["", f"{name} by category:", "", *_table("category", categories)]
    if evaluation.exits is not None:
        by_dataset = {name: m.counted for name, m in evaluation.by_dataset.items()}
        lines += exits_markdown(evaluation.exits, evaluation.mean_macro_f1, by_dataset)
    if evaluation.orders is not None:
        lines += orders_markdown(evaluation.orders)
    if evaluation.paper:
        lines += ["", *_beside_the_paper(evaluation)]
    lines += [f"\n{name}: {note}." for name, note in evaluation.notes.items()]
    for head in evaluation.heads:
        lines += categories_markdown(head)
    return "\n".join(lines) + "\n"


def thresholds_of(evaluation: Evaluation) -> str:
    """The words for its thresholds."""
    of_responses = evaluation.response_threshold
    return told(evaluation.threshold, of_responses, each_label=evaluation.each_label)


def _of_head(head: str | None) -> str:
    return "" if head is None else f"head {head}; "


def _sampled(max_rows: int | None) -> list[str]:
    if max_rows is None:
        return []
    return ["", f"At most {max_rows} rows of each data set were scored, of each class alike."]


def _beside_the_paper(evaluation: Evaluation) -> list[str]:
    ours = {name: 100 * metrics.macro_f1 for name, metrics in evaluation.by_dataset.items()}
    compared = next(iter(evaluation.paper.values()))
    rows = []
    for guard, figures in {"**this one**": ours, **evaluation.paper}.items():
        values = [figures[name] for name in compared]
        rows.append([guard, *(f"{value:.1f}" for value in (*values, float(np.mean(values))))])
    return [
        f"Macro-F1 in percent beside that of {PAPER}:",
        "",
        *markdown_table(("guard", *compared, "mean"), rows),
    ]


def _table(title: str, metrics: dict[str, BinaryMetrics]) -> list[str]:
    head = (
        title, "rows", "harmful", "macro-F1", "accuracy", "precision", "recall", "AUROC",
        "average precision", "calibration error",
    )  # fmt: skip
    rows = []
    for name, m in metrics.items():
        values = (
            m.macro_f1_of_both, m.accuracy, m.precision, m.recall, m.auroc, m.average_precision,
            m.expected_calibration_error,
        )  # fmt: skip
        shown = ["-" if value is None else f"{value:.3f}" for value in values]
        rows.append([name or "(none)", str(m.rows), str(m.harmful), *shown])
    return markdown_table(head, rows)
