"""Tables keep their columns, whatever a data set is called."""

import re
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from msgspec.structs import replace as changed

from siren_train.data.streams import StreamRow
from siren_train.fit.ablate import AblationResult, ablation_markdown
from siren_train.fit.held_out import HeldOut, held_out_markdown
from siren_train.measure.categories import CategoryScores, measure_categories
from siren_train.measure.diluted import DilutedEvaluation, DilutedMetrics, diluted_markdown
from siren_train.measure.disguised import (
    AS_WRITTEN,
    KINDS,
    DisguisedEvaluation,
    disguised_markdown,
)
from siren_train.measure.evaluate import Evaluation, Scores, measure
from siren_train.measure.evaluation_tables import evaluation_markdown
from siren_train.measure.exit_evaluation import ExitEvaluation
from siren_train.measure.metrics import binary_metrics
from siren_train.measure.streaming_evaluation import (
    HeadAlarms,
    StreamingEvaluation,
    measure_streaming,
    streaming_markdown,
)
from siren_train.measure.table import markdown_table
from siren_train.measure.traces import Trace

NAME = "a|b"
HARMFUL, SCORES = np.array([False, True]), np.array([0.1, 0.9])
METRICS = binary_metrics(HARMFUL, SCORES, 0.5)


def test_a_table_is_markdown() -> None:
    rows = [[NAME, "", "2"], ["mean", "-", "0.5"]]
    assert markdown_table(["data set", "kind", "rows"], rows) == [
        "| data set | kind | rows |",
        "| --- | --- | --- |",
        r"| a\|b | | 2 |",
        "| mean | - | 0.5 |",
    ]
    assert markdown_table(["data set", "rows"], [], left=1)[1] == "| --- | ---: |"


def _evaluation() -> Evaluation:
    names = np.array([NAME, NAME]), np.array([NAME, ""])
    scores = Scores(SCORES, HARMFUL, *names, risks=SCORES, flagged=SCORES >= 0.5)
    about = {"bundles": ["guard"], "sources": [NAME], "split": "test", "threshold": 0.5}
    labels = CategoryScores(
        "kinds",
        (NAME, "c"),
        np.arange(2),
        np.stack([SCORES, SCORES], axis=1),
        np.array([[True, False], [False, True]]),
        np.array([[True, False], [False, True]]),
        exclusive=True,
    )
    return changed(
        measure(scores, **about, by_category=True),
        exits=ExitEvaluation(0.5, {2: 1.0}, 0.9, {NAME: 0.9}, 0.0),
        paper={"another": {NAME: 80.0}},
        heads=[measure_categories(labels, {})],
    )


def _streams() -> StreamingEvaluation:
    places = 10 * np.arange(1, 4)
    row = StreamRow("row", NAME, "", "x" * 30, (10, 20))
    trace = Trace(row, 0, places, places, np.array([0.1, 0.9, 0.9]), slid=False)
    safe = replace(trace, row=replace(row, span=None))
    found = {NAME: measure_streaming([trace, safe], 0.5)}
    heads = {"harm": HeadAlarms(0.5, 1, found)}
    return StreamingEvaluation("guard", [NAME], "test", 0.5, "responses", 1, found, heads=heads)


MARKDOWN = {
    "evaluation": lambda: evaluation_markdown(_evaluation()),
    "streaming": lambda: streaming_markdown(_streams()),
    "diluted": lambda: diluted_markdown(
        DilutedEvaluation(
            ["guard"],
            [NAME],
            "test",
            0.5,
            {},
            [DilutedMetrics(NAME, "alone", 0, "windows", 2, 1.0, 1.0, 0.0, 1.0)],
        )
    ),
    "disguised": lambda: disguised_markdown(
        DisguisedEvaluation(
            ["guard"], [NAME], "test", 0.5, {NAME: dict.fromkeys((AS_WRITTEN, *KINDS), METRICS)}
        )
    ),
    "held out": lambda: held_out_markdown([HeldOut(NAME, 2, 1, 0.9, 0.8, 0.7)]),
    "ablation": lambda: ablation_markdown([AblationResult("head", "all", 4, 0.9, {NAME: 0.9})]),
}


@pytest.mark.parametrize("report", MARKDOWN)
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(report: str) -> None:
    lines = MARKDOWN[report]().splitlines()
    tables = [[*rows] for of_table, rows in groupby(lines, lambda x: x.startswith("|")) if of_table]
    assert tables
    for rows in tables:
        assert any(r"a\|b" in row for row in rows)
        assert len({len(re.split(r"(?<!\\)\|", row)) for row in rows}) == 1
