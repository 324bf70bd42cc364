"""A streaming evaluation says when the alarm comes, by definitions that a hand can check."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from calibrated import write_calibration
from labelled import write_jsonl
from siren_command import siren
from siren_runtime import Guard
from siren_runtime.bundle.thresholds import SpanThreshold
from siren_runtime.errors import InputError
from siren_train.commands import evaluate
from siren_train.data.rows import Columns
from siren_train.data.sources import parse_source
from siren_train.data.streams import StreamRow, pieces_of, read_stream_rows
from siren_train.measure.streaming_evaluation import measure_streaming
from siren_train.measure.traces import Trace, trace_streams
from tiny_bundle import HARM as LETTER
from tiny_bundle import make_alarm, make_bundle

CALM, HARM = "bread and water " * 4, "a weapon to hurt people "
ROWS = [
    {
        "prompt": "How?" if index % 2 else None,
        "response": CALM + (HARM if harmful else CALM[:24]) + CALM,
        "harm_start": len(CALM) if harmful else None,
        "harm_end": len(CALM + HARM) if harmful else None,
        "split": "test",
    }
    for index in range(6)
    for harmful in (True, False)
]


def traced(scores, span=(10, 20), tokens=None):
    """A trace of a response of ten characters and ten tokens a piece."""
    tens = 10 * np.arange(1, len(scores) + 1)
    row = StreamRow("row", "data", "", "x" * 10 * len(scores), span)
    return Trace(row, 0, tens, tens, np.array(scores, np.float64), slid=False)


@pytest.mark.parametrize(
    ("scores", "outcome"),
    [
        ([0.9, 0.1, 0.1], "early"),
        ([0.1, 0.9, 0.1], "on_time"),
        ([0.1, 0.1, 0.9], "late"),
        ([0.1, 0.1, 0.1], "missed"),
    ],
)
def test_an_alarm_is_early_on_time_late_or_missed(scores, outcome):
    metrics = measure_streaming([traced(scores)], 0.5)
    assert getattr(metrics, outcome) == 1.0
    assert metrics.early + metrics.on_time + metrics.late + metrics.missed == 1.0


def test_delay_and_saving_are_tokens_from_the_onset_and_after_the_alarm():
    late = traced([0.1, 0.1, 0.1, 0.9, 0.1, 0.1])  # onset at 10, alarm at 40, 60 in all
    metrics = measure_streaming([late, traced([0.1] * 6)], 0.5)
    assert metrics.delay_median == metrics.delay_mean == 30
    assert metrics.saved_mean == 10
    assert metrics.saved_share == pytest.approx(20 / 120)


def test_recall_is_the_verdict_so_many_tokens_after_the_end():
    metrics = measure_streaming([traced([0.1, 0.1, 0.1, 0.1, 0.9, 0.1]), traced([0.9] * 3)], 0.5)
    assert metrics.recall == {0: 0.5, 32: 1.0, 64: 0.5, 128: 0.5, 256: 0.5}
    assert metrics.reached == {0: 2, 32: 1, 64: 0, 128: 0, 256: 0}


def test_false_alarms_are_of_safe_streams():
    metrics = measure_streaming([traced([0.1, 0.9], None), traced([0.1, 0.1], None)], 0.5)
    assert metrics.false_alarms == 0.5
    assert (metrics.harmful, metrics.safe, metrics.missed) == (0, 2, None)


@pytest.mark.parametrize("words", [1, 3, 100])
def test_pieces_make_up_the_response_and_are_cut_where_harm_starts_and_ends(words):
    row = StreamRow("row", "data", "", "one two\n\nthree  four five", (5, 15))
    pieces = list(pieces_of(row, words))
    assert "".join(pieces) == row.response
    ends = np.cumsum([len(piece) for piece in pieces])
    assert {5, 15} <= set(ends.tolist())
    assert all(len(piece.split()) <= words for piece in pieces)


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_traces_are_the_scores_of_what_was_fed_so_far(tmp_path):
    guard = Guard.load(make_bundle(tmp_path / "bundle"))
    rows = [StreamRow("row", "data", "Hi", "one two three", None)] * 20
    traces = trace_streams(guard, rows, 1, response_only=False)
    for trace in traces:
        for fed, score in zip(trace.characters, trace.scores, strict=True):
            expected = guard.score(prompt="Hi", response="one two three"[:fed]).score
            assert score == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def of_spans(tmp_path):
    """An alarm that a few letters of a text raise by their span, and not by the whole."""
    bundle = make_alarm(tmp_path / "alarm", 8.0)
    write_calibration(bundle, threshold=0.9, spans=[SpanThreshold(4, 0.9)])
    return bundle


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_the_last_score_is_that_of_the_whole_text_with_spans_that_its_end_cuts(of_spans):
    guard, response = Guard.load(of_spans), f"aaaa aaaa aaaa {LETTER * 3}"
    (trace,) = trace_streams(
        guard, [StreamRow("row", "data", "Hi", response, None)], 1, response_only=False
    )
    whole = guard.score(prompt="Hi", response=response)
    assert trace.scores[-1] == pytest.approx(whole.risk, abs=1e-6)
    assert whole.risk > whole.score


def test_spans_raise_the_alarm_as_in_streams_by_default(of_spans, tmp_path):
    row = {"response": f"aaaa aaaa {LETTER * 4} aaaa", "split": "test"}
    data, output = write_jsonl(tmp_path / "rows.jsonl", [row]), tmp_path / "report"
    done = siren("evaluate", of_spans, data, "--streaming", "-o", output)
    assert done.exit_code == 0, done.output
    found = json.loads((output / "streaming.json").read_text())
    assert found["by_dataset"]["rows"]["false_alarms"] == 1.0
    assert found["spans"] == [4]
    assert "Spans of 4 tokens count too." in done.stdout
    with Guard.load(of_spans, spans=False) as guard:
        assert not guard.score(response=row["response"]).is_harmful


def test_the_command_writes_table_and_plot(tmp_path):
    data = write_jsonl(tmp_path / "streams.jsonl", ROWS)
    output = tmp_path / "report"
    arguments = [str(make_bundle(tmp_path / "bundle")), str(data), "--streaming"]
    result = CliRunner().invoke(evaluate.app, [*arguments, "--threshold", "0", "-o", str(output)])
    assert result.exit_code == 0, result.output
    found = json.loads((output / "streaming.json").read_text())["by_dataset"]["streams"]
    assert (found["harmful"], found["safe"], found["false_alarms"]) == (6, 6, 1.0)
    assert (output / "streaming.md").read_text() in result.stdout
    assert (output / "onset.png").read_bytes().startswith(b"\x89PNG")
    wrong = CliRunner().invoke(evaluate.app, [*arguments, "--by", "category"])
    assert wrong.exit_code == 2


def test_an_ensemble_is_not_streamed(tmp_path):
    data = write_jsonl(tmp_path / "streams.jsonl", ROWS)
    for name in ("one", "two"):
        make_bundle(tmp_path / "pair" / name)
    members = {"format_version": 1, "members": ["one", "two"]}
    (tmp_path / "pair" / "ensemble.json").write_text(json.dumps(members))
    done = siren("evaluate", tmp_path / "pair", data, "--streaming")
    assert done.exit_code == 1
    assert "pair: is an ensemble, and --streaming takes one bundle" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response": None}, "'response' is None"),
        ({"response": " "}, "is empty"),
        ({"harm_end": None}, "give both"),
        ({"harm_end": 10_000}, "is no span of a response"),
        ({"harm_start": -1}, "expected a character's index"),
        ({"harm_start": float("inf")}, "expected a character's index"),
        ({"harm_start": True}, "expected a character's index"),
        ({"prompt": 7}, "expected a string"),
        ({"split": "dev"}, "no rows of the 'test' split"),
    ],
)
def test_rows_that_cannot_be_streamed_are_named(tmp_path, change, message):
    data = write_jsonl(tmp_path / "streams.jsonl", [{**ROWS[0], **change}])
    with pytest.raises(InputError, match=message):
        read_stream_rows([parse_source(str(data))], "test", Columns())


def test_csv_and_parquet_hold_the_same_rows(tmp_path):
    import csv

    import pyarrow as arrow
    from pyarrow import parquet

    data = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    read = [
        [
            (r.prompt, r.response, r.span)
            for r in read_stream_rows([parse_source(p)], "test", Columns())
        ]
        for p in (str(data), str(tmp_path / "rows.csv"), str(tmp_path / "rows.parquet"))
    ]
    assert read[0] == read[1] == read[2]
