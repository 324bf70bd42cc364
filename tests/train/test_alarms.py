"""Thresholds and smoothing of streams, at a bound of false alarms."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from calibrated import write_calibration
from labelled import WORDS, write_jsonl
from models import make_artifact, make_forecast, make_labels
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.thresholds import ResponseThresholds, SpanThreshold
from siren_runtime.errors import InputError
from siren_runtime.scoring.verdict import log_odds
from siren_train.data.rows import Columns
from siren_train.data.sources import parse_source
from siren_train.data.streams import StreamRow, pieces_of, read_stream_rows
from siren_train.measure.alarms import alarm_threshold, choose_smoothing, find_alarms, smoothed
from siren_train.measure.streaming_evaluation import measure_streaming
from siren_train.measure.traces import Trace


def traced(scores, *, harmful, tokens=None, end=None):
    """A trace of a piece a score, one character each; harm is from the start to `end`."""
    count = np.arange(1, len(scores) + 1)
    span = (0, end or len(scores)) if harmful else None
    row = StreamRow("row", "data", "", "x" * len(scores), span)
    of_pieces = count if tokens is None else np.cumsum(tokens)
    return Trace(row, 0, count, of_pieces, np.array(scores, np.float64), slid=False)


SAFE = [traced([0.1, peak, 0.1], harmful=False) for peak in (0.2, 0.3, 0.4, 0.9)]
HARMFUL = [traced([0.1, 0.2, peak], harmful=True) for peak in (0.35, 0.5, 0.95)]


def test_the_threshold_is_that_of_most_alarms_within_the_bound():
    assert 0.4 < alarm_threshold([*SAFE, *HARMFUL], 0.25) < 0.5
    assert 0.9 < alarm_threshold([*SAFE, *HARMFUL], 0.0) < 0.95
    assert 0.3 < alarm_threshold([*SAFE, *HARMFUL], 0.5) < 0.35
    found = find_alarms([*SAFE, *HARMFUL], 0.25)
    assert (found.coverage, found.false_alarms) == (pytest.approx(2 / 3), 0.25)
    with pytest.raises(InputError, match="score 1"):
        alarm_threshold([traced([1.0], harmful=False), traced([1.0], harmful=True)], 0.5)


def test_an_alarm_after_the_harm_covers_nothing():
    late = [replace(one, row=replace(one.row, span=(0, 2))) for one in HARMFUL]
    assert find_alarms([*SAFE, *late], 0.25).coverage == 0


def test_smoothing_of_pieces_is_that_of_their_tokens():
    trace = traced([0.4, 0.8, 0.2], harmful=True, tokens=[1, 2, 1])
    expected, found = 0.4, []
    for score in (0.4, 0.8, 0.8, 0.2):
        expected += 0.5 * (score - expected)
        found.append(expected)
    np.testing.assert_allclose(smoothed(trace, 3).scores, [found[0], found[2], found[3]])
    np.testing.assert_array_equal(smoothed(trace, 1).scores, trace.scores)


def test_the_smoothing_is_chosen_that_catches_most_at_the_bound():
    spikes = [traced([0.1] * 9 + [0.9] + [0.1] * 10, harmful=False)] * 4
    steady = [traced([0.1] * 5 + [0.6] * 15, harmful=True)] * 4
    assert find_alarms([*spikes, *steady], 0.0).coverage == 0
    chosen = choose_smoothing([*spikes, *steady], 0.0)
    assert chosen > 1
    averaged = [smoothed(trace, chosen) for trace in [*spikes, *steady]]
    assert find_alarms(averaged, 0.0, chosen).coverage == 1
    assert choose_smoothing([*SAFE[:3], HARMFUL[2]], 0.0) == 1  # of equally good ones the least


def test_a_stream_says_how_soon_it_was_stopped_and_how_well_its_peak_ranks():
    soon = traced([0.1, 0.9, 0.1], harmful=True, tokens=[10, 10, 40])
    late = traced([0.1, 0.1, 0.9], harmful=True, tokens=[10, 10, 40])
    metrics = measure_streaming([soon, late, *SAFE[:3]], 0.5)
    assert metrics.within == {16: 0.0, 32: 0.5, 64: 1.0, 128: 1.0}
    assert metrics.auroc == 1.0
    assert measure_streaming([soon], 0.5).auroc is None


@pytest.mark.parametrize(
    ("label", "span"), [(1, (0, 5)), ("1", (0, 5)), ("harmful", (0, 5)), (0, None), (None, None)]
)
def test_a_response_labelled_harmful_is_so_throughout(tmp_path, label, span):
    row = {"response": "bread", "split": "test", "label": label}
    data = write_jsonl(tmp_path / "rows.jsonl", [row, {**row, "harm_start": 1, "harm_end": 3}])
    rows = read_stream_rows([parse_source(str(data))], "test", Columns())
    assert [one.span for one in rows] == [span, (1, 3)]


def test_streams_beside_text_that_is_not_read_are_told_of(tmp_path, caplog):
    rows = [{"promt": "How do I?", "response": "bread", "split": s} for s in ("test", "train")]
    source = parse_source(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert [one.prompt for one in read_stream_rows([source], "test", Columns())] == [""]
    (record,) = caplog.records
    assert "of 1 rows the response is read alone" in record.getMessage()
    assert "column 'promt' is not read" in record.getMessage()


@pytest.mark.parametrize("label", ["unsafe", "true", "Harmful", 2])
def test_an_unknown_label_is_refused_and_not_safe(tmp_path, label):
    row = {"response": "bread", "split": "test", "label": label}
    source = parse_source(str(write_jsonl(tmp_path / "rows.jsonl", [row])))
    with pytest.raises(InputError, match=r"column 'label' is .*expected one of safe, harmful"):
        read_stream_rows([source], "test", Columns())


def test_columns_and_classes_are_those_that_were_named(tmp_path):
    rows = [
        {"question": "How?", "answer": "bread", "part": "test", "verdict": verdict, "label": "?"}
        for verdict in ("bad", "good", "")
    ]
    source = parse_source(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    columns = Columns(("answer",), "verdict", "part", classes=("good", "bad"))
    found = read_stream_rows([source], "test", columns)
    assert [(one.prompt, one.span) for one in found] == [("", (0, 5)), ("", None), ("", None)]
    found = read_stream_rows([source], "test", replace(columns, text=("question", "answer")))
    assert {(one.prompt, one.response) for one in found} == {("How?", "bread")}
    for wrong in (
        {"label": "judgement"},
        {"text": ("prompt", "answer")},
        {"text": ("a", "b", "c")},
    ):
        with pytest.raises(InputError):
            read_stream_rows([source], "test", replace(columns, **wrong))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, backbone_folder):
    """A plain head and a forecast head on a decoder."""
    folder, backbone = tmp_path_factory.mktemp("alarms"), backbone_folder("qwen3")
    heads = {
        "plain": load_artifact(make_artifact(folder / "plain", backbone, layers=[1])),
        "ahead": load_artifact(make_forecast(folder / "ahead", backbone)),
        "kinds": load_artifact(make_labels(folder / "kinds", backbone, layers=[0])),
    }
    export_bundle(together(heads), load_checkpoint(backbone), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt": "How?" if number % 3 else None,
            "response": " ".join(rng.choice(WORDS[0], 12).tolist()),
            "label": number % 2,
            "split": split,
        }
        for number in range(12)
        for split in ("validation", "test")
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", rows)


def test_the_commands_calibrate_a_head_and_compare_heads_at_one_rate(bundle, data, tmp_path):
    before = json.loads((bundle / "guard.json").read_text())
    arguments = ["calibrate", bundle, data, "--head", "ahead", "--false-alarms", 0.34]
    result = siren(*arguments, "--threads", 1)
    assert result.exit_code == 0, result.output
    after = json.loads((bundle / "guard.json").read_text())
    decision = after["decisions"]["ahead"]
    assert decision["threshold"] != before["decisions"]["ahead"]["threshold"]
    assert decision["smoothing"] in (1, 4, 8, 16, 32, 64)
    assert (after["threshold"], after["smoothing"]) == (before["threshold"], 1)
    arguments = ["evaluate", bundle, data, "--streaming", "--pool", "conversation"]
    result = siren(*arguments, "--false-alarms", 0.34, "--threads", 1, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report/streaming.json").read_text())
    assert [*report["heads"]] == ["plain", "ahead", "kinds"]
    for head in report["heads"].values():
        assert head["by_dataset"]["rows"]["false_alarms"] <= 0.34
    assert report["heads"]["ahead"]["smoothing"] == decision["smoothing"]
    assert report["threshold"] == report["heads"]["plain"]["threshold"]
    assert "| ahead | rows |" in result.stdout
    assert report["reads"] == "prompt and response"
    result = siren(*arguments, "--threads", 1)
    assert f"| ahead | rows | {decision['threshold']:.4f} |" in result.stdout


def stops(guard, row):
    """Whether a stream of the row is harmful at some word."""
    pieces = [*pieces_of(row, 1)]
    with guard.stream(row.prompt) as stream:
        fed = [stream.feed(piece, last=piece is pieces[-1]) for piece in pieces]
    return any(result.is_harmful for result in fed)


@pytest.mark.parametrize(
    "responses", [None, ResponseThresholds(0.4, spans=[SpanThreshold(4, 0.02)])]
)
def test_the_bound_holds_for_streams_that_count_spans(bundle, tmp_path, responses):
    rng, folder = np.random.default_rng(1), shutil.copytree(bundle, tmp_path / "bundle")
    write_calibration(folder, spans=[SpanThreshold(4, 0.01)])  # any span is harmful
    if responses is not None:
        write_calibration(folder, responses=responses)
    rows = [
        {"response": " ".join(rng.choice(WORDS[0], 24)), "label": n % 2, "split": "validation"}
        for n in range(24)
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    streams = read_stream_rows([parse_source(str(data))], "validation", Columns())
    safe = [row for row in streams if row.span is None]
    before = load_bundle(folder).manifest
    guard = Guard.load(folder, threads=1, streaming=True)
    assert all(stops(guard, row) for row in safe)
    result = siren("calibrate", folder, data, "--false-alarms", 0.1, "--threads", 1)
    assert result.exit_code == 0, result.output
    guard = Guard.load(folder, threads=1, streaming=True)
    assert np.mean([stops(guard, row) for row in safe]) <= 0.1
    after, own = load_bundle(folder).manifest, before.responses or before
    assert after.responses is None
    moved = log_odds(after.threshold) - log_odds(own.threshold)
    (old,), (new,) = own.spans, after.spans
    assert log_odds(new.threshold) - log_odds(old.threshold) == pytest.approx(moved)
    assert f"spans of 4 tokens: from {new.threshold:.10g}" in result.stdout


def test_labels_decide_from_thresholds_of_their_own_which_alarms_do_not_move(bundle, data):
    before = (bundle / "guard.json").read_bytes()
    arguments = ["calibrate", bundle, data, "--head", "kinds", "--false-alarms", 0.34]
    result = siren(*arguments, "--threads", 1)
    assert result.exit_code == 1
    assert "head 'kinds' has labels" in " ".join(result.stderr.split())
    assert (bundle / "guard.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--threshold", "best"], 2),
        (["--cascade"], 2),
        (["--responses"], 2),
        (["--labels", "hate"], 2),
        (["--head", "none"], 1),
        (["--split", "none"], 1),
    ],
)
def test_what_does_not_go_with_alarms_is_refused(bundle, data, options, status):
    result = siren("calibrate", bundle, data, "--false-alarms", 0.1, *options)
    assert result.exit_code == status
    assert siren("evaluate", bundle, data, "--false-alarms", 0.1).exit_code == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--threshold", "0.5", "--pool", "response"],
        ["--threshold", "0.5", "--labels", "hate"],
        ["--cascade", "--responses", "--loss", "1"],
    ],
)
def test_options_of_another_calibration_are_refused(bundle, data, options):
    assert siren("calibrate", bundle, data, *options).exit_code == 2


def test_streams_of_one_kind_choose_no_threshold(bundle, tmp_path):
    rows = [{"response": "bread", "label": 0, "split": "validation"}] * 2
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    result = siren("calibrate", bundle, data, "--false-alarms", 0.1)
    assert result.exit_code == 1
    assert "needs both kinds" in result.stderr
