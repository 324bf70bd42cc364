"""Rows among plain text: how they are made, what is measured, and thresholds of spans by them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from calibrated import write_calibration
from labelled import make_rows, write_jsonl
from siren_runtime import Guard
from siren_runtime.bundle.manifest import decode
from siren_runtime.bundle.progress import silent
from siren_runtime.bundle.thresholds import ResponseThresholds
from siren_runtime.errors import InputError
from siren_train.commands import calibrate, evaluate
from siren_train.data.dilution import PLACES, Dilution, checked_lengths
from siren_train.data.reading import sampled
from siren_train.data.rows import Columns, Row, read_all
from siren_train.data.sources import parse_source
from siren_train.measure.calibrate_responses import choose_spans
from siren_train.measure.calibrate_spans import (
    SpanScores,
    find_span_thresholds,
    score_diluted_spans,
    score_spans,
    unseen_sizes,
)
from siren_train.measure.diluted import measure_diluted
from tiny_bundle import edit_manifest, make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a random head that reads 200 bytes at once, each a token."""
    folder = make_bundle(tmp_path / "bundle", scale=3.0)
    manifest = json.loads((folder / "guard.json").read_bytes())
    manifest["text"]["max_length"] = 200
    (folder / "guard.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", make_rows(60))


def _rows(data: Path, split: str = "test") -> list[Row]:
    sources = [parse_source(str(data))]
    return [row for row in read_all(sources, Columns()) if row.split == split]


@pytest.mark.parametrize("place", ["behind", "middle"])
def test_a_row_stands_among_so_many_tokens_of_other_safe_rows(
    bundle: Path, data: Path, place: str
) -> None:
    tokenizer = Guard.load(bundle).scorers[0].tokenizer
    rows = _rows(data)
    diluted = Dilution(tokenizer, 100, place).of(rows)  # type: ignore[arg-type]
    safe = [row.text for row in rows if row.label == 0]
    for row, among in zip(rows, diluted, strict=True):
        before, found, after = among.text.partition(row.text)
        assert found
        assert (among.label, among.dataset, among.id) == (row.label, row.dataset, None)
        plain = (before + after).split("\n")
        assert 100 <= len((before + after).encode()) <= 100 + len(plain)
        assert all(any(part in text for text in safe) for part in plain)
        assert bool(after) == (place == "middle")
    assert diluted == Dilution(tokenizer, 100, place).of(rows)  # type: ignore[arg-type]
    assert diluted != Dilution(tokenizer, 100, place, seed=1).of(rows)  # type: ignore[arg-type]


def test_plain_text_is_of_all_safe_rows_that_there_are(bundle: Path, data: Path) -> None:
    """Of few safe rows one that looks harmful would stand in many of the texts."""
    rows = _rows(data)
    dilution = Dilution(Guard.load(bundle).scorers[0].tokenizer, 100, "behind")
    few, others = rows[:2], [row for row in rows[2:] if row.label == 0]
    found = [row.text for row in dilution.of(few, rows)]
    assert any(other.text in text for text in found for other in others)
    with pytest.raises(InputError, match="fewer than two"):
        dilution.of(few)


def test_a_data_set_without_plain_text_is_named(bundle: Path, data: Path) -> None:
    tokenizer = Guard.load(bundle).scorers[0].tokenizer
    rows = [row for row in _rows(data) if row.label == 1]
    with pytest.raises(InputError, match=r"data: .*fewer than two"):
        Dilution(tokenizer, 100, "behind").of(rows)


@pytest.mark.parametrize("lengths", ["", "0", "100,100", "a", "1.5", "-3"])
def test_lengths_that_are_none_are_refused(lengths: str) -> None:
    with pytest.raises(InputError, match="different whole numbers"):
        checked_lengths(lengths)


def test_each_way_of_reading_is_measured(bundle: Path, data: Path) -> None:
    guard, rows = Guard.load(bundle), _rows(data)
    results = measure_diluted(guard, rows, [60, 90], 0.5)
    assert [(r.place, r.tokens, r.way) for r in results] == [
        (place, tokens, way)
        for place, tokens in (
            ("alone", 0), ("behind", 60), ("middle", 60), ("behind", 90), ("middle", 90),
        )
        for way in ("beginning", "windows", "spans")
    ]  # fmt: skip
    behind = Dilution(guard.scorers[0].tokenizer, 60, "behind").of(rows)
    texts = [row.given for row in behind]
    harmful = np.array([row.label == 1 for row in behind])
    for way, scores in (
        ("beginning", [r.score for r in guard.score_batch(texts, long_text="truncate")]),
        ("windows", [r.score for r in guard.score_batch(texts)]),
        ("spans", [r.risk for r in guard.score_batch(texts, spans=True)]),
    ):
        (found,) = [r for r in results if (r.place, r.tokens, r.way) == ("behind", 60, way)]
        flagged = np.array(scores) >= 0.5
        assert found.recall == pytest.approx(flagged[harmful].mean())
        assert found.false_alarms == pytest.approx(flagged[~harmful].mean())


def test_rows_with_a_response_go_by_its_threshold(bundle: Path, data: Path) -> None:
    write_calibration(bundle, threshold=0.0, responses=ResponseThresholds(1.0))
    guard, rows = Guard.load(bundle), [replace(row, has_response=True) for row in _rows(data)]
    results = measure_diluted(guard, rows, [60])
    assert {(r.recall, r.false_alarms) for r in results} == {(0.0, 0.0)}


def test_plain_text_stands_in_the_prompt_and_behind_the_response(bundle: Path, data: Path) -> None:
    """So that of a long one the guard knows the response."""
    (row, *_) = [row for row in _rows(data) if row.turns]
    tokenizer = Guard.load(bundle).scorers[0].tokenizer
    for place in PLACES:
        (found,) = Dilution(tokenizer, 400, place).of([row], _rows(data))
        prompt, response = found.given
        assert f"{prompt}\n{response}" == found.text
        assert prompt.endswith(row.turns[0])
        assert response.startswith(row.turns[1])


def test_a_sample_has_half_of_each_class(data: Path) -> None:
    labels = [row.label for row in sampled(_rows(data), 6)]
    assert sorted(labels) == [0, 0, 0, 1, 1, 1]
    assert len(sampled(_rows(data), None)) == len(_rows(data))


def test_the_command_writes_a_table_and_a_picture(bundle: Path, data: Path, tmp_path: Path) -> None:
    weights = {"harm": "0" * 64}
    edit_manifest(bundle, lambda manifest: manifest.update(weights_sha256=weights))
    arguments = [str(bundle), str(data), "--diluted", "40,80", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(evaluate.app, arguments)
    assert done.exit_code == 0, done.output
    assert "| data | middle | 80 | spans |" in done.output
    report = json.loads((tmp_path / "out" / "diluted.json").read_bytes())
    assert len(report["results"]) == 15
    assert report["weights_sha256"] == [weights]
    assert report["machine"]["logical_cores"] > 0
    assert (tmp_path / "out" / "diluted.md").read_text() in done.output
    assert (tmp_path / "out" / "diluted.png").read_bytes().startswith(b"\x89PNG")


spans = st.lists(
    st.tuples(*[st.integers(0, 20).map(lambda n: n / 21)] * 3, st.booleans()),
    min_size=2,
    max_size=60,
).filter(lambda rows: any(not row[3] for row in rows))


@given(spans, st.floats(0.0, 1.0))
def test_at_most_the_rate_of_safe_rows_has_a_span_above(rows: list[tuple], rate: float) -> None:
    harmful = np.array([row[3] for row in rows])
    scores = SpanScores(np.array([row[:3] for row in rows]), harmful, np.zeros(len(rows), bool))
    limits = np.array([span.threshold for span in find_span_thresholds(scores, f"fpr:{rate}")])
    flagged = (scores.scores >= limits).any(axis=1)
    assert flagged[~scores.harmful].mean() <= rate


def test_sizes_that_few_or_no_safe_rows_have_flag_none_of_them() -> None:
    of_rows = np.zeros((20, 3))
    of_rows[:, 0], of_rows[0, 1], of_rows[1, 2] = np.arange(1, 21) / 30, 0.4, 0.9
    harmful = np.arange(20) == 1
    scores = SpanScores(of_rows, harmful, np.zeros(20, bool))
    (plenty, few, none) = find_span_thresholds(scores, "fpr:0.2")
    assert plenty.threshold == pytest.approx(18.5 / 30)
    assert (few.threshold, none.threshold) == (pytest.approx(0.7), 1.0)
    assert unseen_sizes(scores) == [128]


@pytest.mark.parametrize("rule", ["best", "fpr:2", "recall:0.9", "", "nan"])
def test_a_rule_that_is_none_for_spans_is_refused(rule: str) -> None:
    scores = SpanScores(np.zeros((2, 3)), np.array([True, False]), np.zeros(2, bool))
    with pytest.raises(InputError, match="no rule for spans"):
        find_span_thresholds(scores, rule)


def test_thresholds_of_spans_need_safe_rows_of_their_own_kind() -> None:
    """Of texts as of responses, where these have thresholds of their own."""
    has_response = np.array([False, False, True, True])
    scores = SpanScores(np.zeros((4, 3)), np.array([True, True, True, False]), has_response)
    with pytest.raises(InputError, match="none of the rows is safe"):
        choose_spans(scores, "fpr:0.1", by_response=True)


def test_spans_of_responses_get_thresholds_by_their_own_rows() -> None:
    """A safe answer to a harmful prompt has a harmful span, which says nothing of other texts."""
    draw = np.random.default_rng(0)
    has_response = np.arange(400) % 2 == 0
    scores = np.where(has_response[:, None], 0.5, 0.0) + draw.random((400, 3)) / 2
    spans = SpanScores(scores, np.arange(400) % 4 > 1, has_response)
    of_texts, of_responses = choose_spans(spans, "fpr:0.1", by_response=True)
    assert of_responses is not None
    for own, rows in ((of_texts, ~has_response), (of_responses, has_response)):
        assert own == find_span_thresholds(spans.of(rows), "fpr:0.1")
    assert max(span.threshold for span in of_texts) < 0.5
    assert min(span.threshold for span in of_responses) > 0.5
    together = find_span_thresholds(spans, "fpr:0.1"), None
    assert choose_spans(spans, "fpr:0.1", by_response=False) == together
    texts = spans.of(~has_response)
    assert choose_spans(texts, "fpr:0.1", by_response=True) == (of_texts, None)


def test_spans_are_chosen_twice_where_responses_have_a_threshold(bundle: Path, data: Path) -> None:
    """The threshold of responses stays as it is."""
    write_calibration(bundle, threshold=0.5, responses=ResponseThresholds(0.7))
    arguments = [str(bundle), str(data), "--spans", "fpr:0.2", "--diluted", "60"]
    done = CliRunner().invoke(calibrate.app, arguments)
    assert done.exit_code == 0, done.output
    manifest = decode((bundle / "guard.json").read_bytes(), "guard.json")
    assert manifest.responses is not None
    assert manifest.responses.threshold == 0.7
    assert len(manifest.responses.spans) == len(manifest.spans) == 3
    assert manifest.responses.spans != manifest.spans
    assert "responses, spans of 32 tokens: from" in done.output


def test_rows_with_a_response_are_scored_as_such(bundle: Path, data: Path) -> None:
    found = _rows(data)[:4]
    rows = [replace(row, has_response=place % 2 == 0) for place, row in enumerate(found)]
    guard = Guard.load(bundle)
    scores = score_diluted_spans(guard, rows, rows, [40], silent, guard.heads[0])
    assert scores.has_response.tolist() == [True, False] * 4
    assert (scores.scores[4:, 0] > 0).all()


def test_calibrated_spans_are_used_and_move_with_the_temperature(bundle: Path, data: Path) -> None:
    arguments = [str(bundle), str(data), "--spans", "fpr:0.2", "--diluted", "60,90"]
    done = CliRunner().invoke(calibrate.app, arguments)
    assert done.exit_code == 0, done.output
    assert "spans of 32 tokens: from" in done.output
    guard, rows = Guard.load(bundle), _rows(data, "validation")
    tokenizer = guard.scorers[0].tokenizer
    among = [r for n in (60, 90) for r in Dilution(tokenizer, n, "behind").of(rows)]
    spans = score_spans(guard, [*rows, *among])
    limits = [span.threshold for span in guard.manifest.spans]
    assert (spans.scores >= limits).any(axis=1)[~spans.harmful].mean() <= 0.2
    text = among[0].text
    before = guard.score(text)
    assert before.spans
    write_calibration(bundle, temperature=3.0)
    after = Guard.load(bundle).score(text)
    assert [s.tokens for s in after.spans] == [s.tokens for s in before.spans]
    for old, new in zip(before.spans, after.spans, strict=True):
        assert (old.score >= old.threshold) == (new.score >= new.threshold)


def test_spans_are_of_the_sizes_that_are_asked_for(bundle: Path, data: Path) -> None:
    arguments = [str(bundle), str(data), "--spans", "fpr:0.2", "--diluted", "90"]
    done = CliRunner().invoke(calibrate.app, [*arguments, "--span-sizes", "64,40"])
    assert done.exit_code == 0, done.output
    guard, rows = Guard.load(bundle), _rows(data, "validation")
    limits = {span.tokens: span.threshold for span in guard.manifest.spans}
    assert [*limits] == [40, 64]
    among = Dilution(guard.scorers[0].tokenizer, 90, "behind").of(rows)
    found = score_spans(guard, [*rows, *among], sizes=[40, 64])
    flagged = (found.scores >= [*limits.values()]).any(axis=1)
    assert 0 < flagged[~found.harmful].mean() <= 0.2
    assert {span.tokens for span in guard.score(among[0].text).spans} == {40, 64}


def test_sizes_of_spans_are_refused_without_a_rule_for_them(bundle: Path) -> None:
    for arguments in (
        ["--threshold", "0.5", "--span-sizes", "64"],
        ["--spans", "0.9", "--span-sizes", "64,64"],
    ):
        assert CliRunner().invoke(calibrate.app, [str(bundle), *arguments]).exit_code != 0


def test_a_number_for_spans_needs_no_rows(bundle: Path) -> None:
    done = CliRunner().invoke(calibrate.app, [str(bundle), "--spans", "0.9"])
    assert done.exit_code == 0, done.output
    manifest = decode((bundle / "guard.json").read_bytes(), "guard.json")
    assert [(s.tokens, s.threshold) for s in manifest.spans] == [(32, 0.9), (64, 0.9), (128, 0.9)]
