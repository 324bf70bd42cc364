"""Texts whose letters or spaces are disguised: how they are made, learned from and measured."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from labelled import make_rows, write_jsonl
from siren_runtime import Guard
from siren_runtime.errors import InputError
from siren_train.commands import evaluate
from siren_train.data.copies import Copies, SafeTexts, with_copies
from siren_train.data.disguises import KINDS, disguised
from siren_train.data.rows import Columns, Row, read_all
from siren_train.data.sources import parse_source
from siren_train.measure.disguised import (
    AS_WRITTEN,
    DisguisedEvaluation,
    disguised_markdown,
    disguised_row,
    measure_disguised,
)
from siren_train.measure.metrics import binary_metrics
from tiny_bundle import make_bundle

TEXT = "Where do I find a quiet bench near the river?"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", make_rows(60))


def _rows(data: Path, split: str = "test") -> list[Row]:
    return [row for row in read_all([parse_source(str(data))], Columns()) if row.split == split]


def _every(kind: str) -> set[str]:
    """The text in many draws of a disguise."""
    return {disguised(TEXT, kind, random.Random(seed)) for seed in range(300)}


def test_letters_are_swapped_left_out_or_masked_one_a_word() -> None:
    for text in _every("swapped"):
        for word, was in zip(text.split(), TEXT.split(), strict=True):
            assert Counter(word) == Counter(was)
            assert sum(a != b for a, b in zip(word, was, strict=True)) in (0, 2)
    for text in _every("missing"):
        for word, was in zip(text.split(), TEXT.split(), strict=True):
            assert len(was) - len(word) in (0, 1)
            assert word[0] == was[0]
    for text in _every("masked"):
        for word, was in zip(text.split(), TEXT.split(), strict=True):
            assert sum(a != b for a, b in zip(word, was, strict=True)) == word.count("*") <= 1


def test_words_are_spelled_apart_put_as_digits_or_run_together() -> None:
    assert "W h e r e do I f i n d a q u i e t b e n c h n e a r t h e r i v e r ?" in _every(
        "spelled"
    )
    assert any("r.i.v.e.r.?" in text for text in _every("spelled"))
    assert "Wh3r3 do I f1nd a qu137 b3nch n34r 7h3 r1v3r?" in _every("digits")
    assert TEXT.replace(" ", "") in _every("together")


def test_signs_are_strewn_between_words_alone() -> None:
    for text in _every("strewn"):
        words = set(TEXT.split())
        assert [part for part in text.split() if part in words] == TEXT.split()
        assert len({part for part in text.split() if part not in words}) <= 1


@given(st.text(), st.sampled_from(KINDS), st.integers(0, 9))
def test_any_text_is_disguised_alike_by_the_same_draw(text: str, kind: str, seed: int) -> None:
    first, again = (disguised(text, kind, random.Random(seed)) for _ in range(2))
    assert first == again
    if kind not in ("masked", "missing", "digits", "spelled", "strewn"):
        assert Counter("".join(first.split())) == Counter("".join(text.split()))


def test_copies_are_in_every_disguise_and_keep_their_label(data: Path) -> None:
    rows = _rows(data, "train")
    copies = Copies(seed=0, disguised={"data": 4})
    found = list(with_copies(rows, copies, SafeTexts()))
    changed = 0
    for place in range(0, len(found), 5):
        original, *of_row = found[place : place + 5]
        assert not original.is_copy
        assert all(row.is_copy and row.label == original.label for row in of_row)
        changed += sum(row.text != original.text for row in of_row)
    assert changed > 0.8 * len(rows) * 4
    assert found == list(with_copies(rows, copies, SafeTexts()))
    assert found != list(with_copies(rows, Copies(seed=1, disguised={"data": 4}), SafeTexts()))


def test_each_disguise_is_measured(data: Path, tmp_path: Path) -> None:
    rows = _rows(data)
    guard = Guard.load(make_bundle(tmp_path / "bundle", scale=3.0))
    found = measure_disguised(guard, rows, 0.5)["data"]
    assert list(found) == [AS_WRITTEN, *KINDS]
    harmful = np.array([row.label == 1 for row in rows])
    for kind, metrics in found.items():
        texts = [(row if kind == AS_WRITTEN else disguised_row(row, kind)).text for row in rows]
        scores = np.array([guard.score(text).score for text in texts])
        expected = binary_metrics(harmful, scores, 0.5)
        assert metrics.macro_f1 == pytest.approx(expected.macro_f1)
        assert metrics.auroc == pytest.approx(expected.auroc)
        assert metrics.false_alarms == pytest.approx((scores[~harmful] >= 0.5).mean())


def test_the_command_writes_a_table(data: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", scale=3.0)
    arguments = [str(bundle), str(data), "--disguised", "--max-rows", "8"]
    done = CliRunner().invoke(evaluate.app, [*arguments, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "at most 8 of a data set" in done.output
    assert "| data | 8 |" in done.output
    report = json.loads((tmp_path / "out" / "disguised.json").read_bytes())
    assert list(report["results"]["data"]) == [AS_WRITTEN, *KINDS]
    assert (tmp_path / "out" / "disguised.md").read_text() in done.output
    for other in (["--diluted", "40"], ["--streaming"], ["--by", "category"]):
        refused = CliRunner().invoke(evaluate.app, [*arguments, *other])
        assert refused.exit_code == 2, other


def test_means_are_of_data_sets_with_both_labels(data: Path, tmp_path: Path) -> None:
    """One safe row has a macro-F1 of 0 or 1, which says nothing of a guard."""
    rows = _rows(data)
    one = replace(next(row for row in rows if row.label == 0), dataset="one")
    guard = Guard.load(make_bundle(tmp_path / "bundle", scale=3.0))
    about = {"bundles": ["b"], "sources": ["s"], "split": "test", "threshold": 0.5}

    def lines(rows: list[Row], start: str) -> list[str]:
        evaluation = DisguisedEvaluation(**about, results=measure_disguised(guard, rows, 0.5))
        return [li for li in disguised_markdown(evaluation).splitlines() if li.startswith(start)]

    assert lines([*rows, one], "| mean") == lines(rows, "| mean")
    unknown = [" - "] * (1 + len(KINDS))
    assert lines([one], "| mean")[0].split("|")[3:-1] == unknown
    assert lines([one], "| one |")[0].split("|")[3:-1] == unknown


def test_rows_with_a_response_are_not_disguised(data: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    lines = [
        {"prompt": "Hello", "response": row.text, "label": row.label, "split": "test"}
        for row in _rows(data)
    ]
    path = write_jsonl(tmp_path / "answers.jsonl", lines)
    done = CliRunner().invoke(evaluate.app, [str(bundle), str(path), "--disguised"])
    assert isinstance(done.exception, InputError)
    assert "have a response" in str(done.exception)
