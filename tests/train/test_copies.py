"""Changed copies of train rows: what stands around them, and spans of them."""

import json
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelled import make_rows, write_jsonl
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.errors import InputError
from siren_train.data.copies import Copies, SafeTexts, read_copies, safe_texts, with_copies
from siren_train.data.reading import ALL_ROWS, MostRows, Reading
from siren_train.data.rows import Columns, Row, read_rows
from siren_train.data.sources import Source, parse_source
from siren_train.fit.folds import make_folds
from siren_train.store.extract import extract
from siren_train.store.features import FeatureSet
from siren_train.store.store import FeatureStore

BEFORE = [f"Before {word}." for word in ("one", "two", "three", "four", "five")]
AFTER = [f"After {word}." for word in ("one", "two", "three", "four")]
COPIES = Copies(wrapped={"first": 2}, seed=0, before=BEFORE, after=AFTER)


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Two data sets of 40 rows, 24 of each for training."""
    return [
        parse_source(str(write_jsonl(tmp_path / f"{name}.jsonl", make_rows(40, name=name))))
        for name in ("first", "second")
    ]


def rows_of(sources: list[Source]) -> list[Row]:
    return [row for source in sources for row in read_rows(source, Columns())]


def test_train_rows_of_the_named_data_sets_get_copies(sources: list[Source]) -> None:
    rows = rows_of(sources)
    wrapped = list(with_copies(rows, COPIES, SafeTexts()))
    assert [row for row in wrapped if not row.is_copy] == rows
    copies = [row for row in wrapped if row.is_copy]
    assert {(row.dataset, row.split) for row in copies} == {("first", "train")}
    assert len(copies) == 2 * sum(r.dataset == "first" and r.split == "train" for r in rows)


def test_a_copy_is_its_row_in_sentences_of_the_file(sources: list[Source]) -> None:
    original: Row | None = None
    texts = set()
    for row in with_copies(rows_of(sources), COPIES, SafeTexts()):
        if not row.is_copy:
            original = row
            continue
        assert original is not None
        assert (row.label, row.category, row.id) == (original.label, original.category, None)
        before, after = row.text.split(original.text)
        assert before or after
        for sentences, part in ((BEFORE, before), (AFTER, after)):
            assert set(re.findall(r"[^.]+\.", part.strip())) <= {
                *sentences,
                *(f" {s}" for s in sentences),
            }
        texts.add(row.text)
    assert len(texts) > 20


def test_what_a_row_is_wrapped_in_depends_on_it_and_the_seed_alone(sources: list[Source]) -> None:
    rows = rows_of(sources)
    every = [row.text for row in with_copies(rows, COPIES, SafeTexts()) if row.is_copy]
    apart = [list(with_copies([one], COPIES, SafeTexts())) for one in rows]
    alone = [row.text for found in apart for row in found if row.is_copy]
    assert alone == every
    other = Copies(wrapped=COPIES.wrapped, seed=1, before=BEFORE, after=AFTER)
    assert [row.text for row in with_copies(rows, other, SafeTexts()) if row.is_copy] != every


def test_a_diluted_copy_has_words_of_safe_train_rows_around_it(sources: list[Source]) -> None:
    rows = rows_of(sources)
    copies = Copies(seed=0, diluted={"first": 3})
    safe = safe_texts(rows, copies)
    assert set(safe.any_of) == {
        row.text for row in rows if (row.dataset, row.split, row.label) == ("first", "train", 0)
    }
    allowed = {word for text in safe.any_of for word in text.split()}
    original, found = rows[0], 0
    for row in with_copies(rows, copies, safe):
        if not row.is_copy:
            original = row
            continue
        assert (row.dataset, row.split, row.label) == ("first", "train", original.label)
        before, _, after = row.text.partition(original.text)
        assert original.text in row.text
        around = [*before.split(), *after.split()]
        assert 10 <= len(around) <= 120
        assert set(around) <= allowed
        found += 1
    assert found == 3 * 24


def test_spans_are_cut_out_of_safe_rows_alone(tmp_path: Path) -> None:
    rows = [
        Row("", "long", "train", " ".join(f"w{place}" for place in range(200)), label, "", None)
        for label in (0, 1)
    ] + [Row("", "long", "train", "too short a text", 0, "", None)]
    copies = Copies(seed=0, spans={"long": 5})
    spans = [row for row in with_copies(rows, copies, SafeTexts()) if row.is_copy]
    assert len(spans) == 5
    assert {row.label for row in spans} == {0}
    for span in spans:
        words = span.text.split()
        assert 12 <= len(words) <= 90
        first = int(words[0][1:])
        assert words == [f"w{place}" for place in range(first, first + len(words))]


def test_copies_in_capitals_stand_alone_and_then_among_sentences(sources: list[Source]) -> None:
    copies = Copies(capitals={"first": 2}, seed=0, before=BEFORE, after=AFTER)
    rows = list(with_copies(rows_of(sources), copies, SafeTexts()))
    assert {row.dataset for row in rows if row.is_copy} == {"first"}
    for place, row in enumerate(rows):
        if row.dataset == "first" and row.split == "train" and not row.is_copy:
            alone, among = rows[place + 1].text, rows[place + 2].text
            assert alone == row.text.upper()
            assert alone in among
            assert among.isupper()


def test_a_field_of_a_further_file_replaces_that_of_the_first(tmp_path: Path) -> None:
    first, further = tmp_path / "first.json", tmp_path / "further.json"
    first.write_text('{"seed": 3, "diluted": {"a": 1}, "spans": {"a": 1}}')
    further.write_text('{"capitals": {"b": 1}, "diluted": {"b": 2}}')
    assert read_copies(first, further) == Copies(
        seed=3, diluted={"b": 2}, spans={"a": 1}, capitals={"b": 1}
    )
    further.write_text('{"capitals": {"b": -1}}')
    with pytest.raises(InputError, match=r"further\.json: .*capitals"):
        read_copies(first, further)


def test_dilution_needs_safe_rows(sources: list[Source]) -> None:
    copies = Copies(seed=0, diluted={"first": 1})
    with pytest.raises(InputError, match="fewer than two"):
        list(with_copies(rows_of(sources), copies, SafeTexts(["only one"])))


def test_a_part_of_the_rows_is_read_in_any_order(sources: list[Source]) -> None:
    part = Reading(sources, Columns(), splits=("train", "validation"), most_rows=MostRows(6))
    rows = list(part.rows())
    counts = Counter((row.dataset, row.split) for row in rows)
    assert counts == {
        (name, split): 6 if split == "train" else 2
        for name in ("first", "second")
        for split in ("train", "validation")
    }
    turned = Reading(
        sources[::-1], Columns(), splits=("train", "validation"), most_rows=MostRows(6)
    )
    assert {row.text for row in turned.rows()} == {row.text for row in rows}
    more = Reading(sources, Columns(), most_rows=MostRows(6, {"second": 9})).rows()
    trained = Counter(row.dataset for row in more if row.split == "train")
    assert trained == {"first": 6, "second": 9}
    few = Reading(sources, Columns(), most_rows=MostRows(of={"second": 3})).rows()
    trained = Counter(row.dataset for row in few if row.split == "train")
    assert trained["first"] > 9
    assert trained["second"] == 3
    with pytest.raises(InputError, match="rows are counted of 'third'; there are first, second"):
        Reading(sources, Columns(), most_rows=MostRows(of={"third": 3}))
    with pytest.raises(InputError, match="no row is of split 'tset'; there are"):
        Reading(sources, Columns(), splits=("tset",))


def test_a_train_row_whose_text_is_measured_elsewhere_is_left_out(tmp_path: Path) -> None:
    def row(text: str | None, split: str, **more: object) -> dict[str, object]:
        return {"text": text, "label": int(text != "safe"), "split": split, **more}

    first = write_jsonl(
        tmp_path / "first.jsonl",
        [
            row("How do I\nbake?", "train"),
            row("\N{LATIN SMALL LETTER E WITH ACUTE}", "train"),
            *[row("kept", "train")] * 2,
            row("safe", "train"),
        ],
    )
    second = write_jsonl(
        tmp_path / "second.jsonl",
        [
            row("how do  i BAKE?", "test"),
            row("E\N{COMBINING ACUTE ACCENT}", "test"),
            row(None, "test", prompt="a", response="b"),
            row("a b", "train"),
            {**row("also safe", "test"), "label": 0},
        ],
    )
    sources = [parse_source(str(path)) for path in (first, second)]
    reading = Reading(sources, Columns(), splits=("train",))
    assert [row.text for row in reading.rows()] == ["kept", "kept", "safe"]
    assert reading.left_out == 3
    limited = Reading(sources, Columns(), most_rows=MostRows(2)).rows()
    assert {row.text for row in limited if row.split == "train"} <= {"kept", "safe"}


def test_a_validation_row_whose_text_is_tested_is_left_out_too(tmp_path: Path) -> None:
    texts = {
        "train": ("tested", "chosen by", "kept"),
        "validation": ("TESTED", "Chosen by", "kept apart"),
        "test": ("tested", "another"),
    }
    rows = [
        {"text": text, "label": place % 2, "split": split}
        for split, of_split in texts.items()
        for place, text in enumerate(of_split)
    ]
    sources = [parse_source(str(write_jsonl(tmp_path / "data.jsonl", rows)))]
    reading = Reading(sources, Columns())
    assert [row.text for row in reading.rows()] == [
        *("kept", "Chosen by", "kept apart"),
        *texts["test"],
    ]
    assert reading.left_out == 3
    assert Reading(sources, Columns(), splits=("validation",)).left_out == 1
    assert Reading(sources, Columns(), splits=("test",)).left_out == 0


@pytest.mark.parametrize("most", [ALL_ROWS, MostRows(10_000)], ids=["all", "limited"])
def test_reading_takes_under_100_bytes_for_each_row(most: MostRows, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        rows = [
            {"text": f"row {n}", "label": n % 2, "split": "test" if n % 10 < 2 else "train"}
            for n in range(count)
        ]
        sources = [parse_source(str(write_jsonl(tmp_path / f"{count}.jsonl", rows)))]
        tracemalloc.start()
        try:
            assert Reading(sources, Columns(), most_rows=most).left_out == 0
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(6000) - peak(3000) < 3000 * 100


@pytest.fixture
def store(
    sources: list[Source], tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> FeatureStore:
    """The rows above, wrapped and pooled."""
    source = backbone_folder("bert")
    return extract(
        sources,
        Columns(),
        load_checkpoint(str(source)),
        tmp_path / "store",
        model_id=str(source),
        max_length=48,
        copies=COPIES,
        threads=1,
    )


def test_a_copy_stands_in_the_fold_of_its_original(store: FeatureStore) -> None:
    train, validation = (
        store.features(split, "residual_mean") for split in ("train", "validation")
    )
    assert not validation.is_copy.any()
    assert validation.without_copies().pooled is validation.pooled  # none in memory of its own
    assert train.is_copy.sum() == 48
    np.testing.assert_array_equal(train.labels, train.labels[train.originals])
    both = FeatureSet.concatenate(validation, train)
    folds = make_folds(both, 4, 0, np.array([0, 1]))
    np.testing.assert_array_equal(folds, folds[both.originals])
    plain = folds[~both.is_copy]
    assert np.bincount(plain).max() - np.bincount(plain).min() <= 4  # data sets times labels


def test_the_rows_of_data_sets_that_are_not_measured_always_train(store: FeatureStore) -> None:
    train = store.features("train", "residual_mean")
    folds = make_folds(train, 4, 0, np.array([1]))
    assert (folds[train.datasets == 0] == -1).all()
    assert (folds[train.datasets == 1] >= 0).all()


def test_other_copies_are_another_store(
    store: FeatureStore, sources: list[Source], backbone_folder: Callable[[str], Path]
) -> None:
    source = backbone_folder("bert")
    with pytest.raises(InputError, match="copies is"):
        extract(
            sources,
            Columns(),
            load_checkpoint(str(source)),
            store.folder,
            model_id=str(source),
            max_length=48,
            copies=Copies(wrapped={"first": 2}, seed=5, before=BEFORE, after=AFTER),
        )


def test_copies_of_a_data_set_that_is_not_there_are_refused(
    sources: list[Source], tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    source = backbone_folder("bert")
    with pytest.raises(InputError, match="asked for of 'frist'; there are first, second"):
        extract(
            sources,
            Columns(),
            load_checkpoint(str(source)),
            tmp_path / "store",
            model_id=str(source),
            copies=Copies(wrapped={"frist": 2}, seed=0, before=BEFORE, after=AFTER),
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"wrapped": {"a": -1}, "seed": 0, "before": BEFORE, "after": AFTER}, "wrapped"),
        ({"wrapped": {"a": 1}, "seed": 0, "before": ["x"], "after": AFTER}, "1 sentences"),
        ({"wrapped": {"a": 1}, "seed": 0, "before": BEFORE}, "after"),
        ({"wrapped": ["a"], "seed": 0, "before": BEFORE, "after": AFTER}, "wrapped"),
        ({"copies": {"a": 1}, "seed": 0}, "copies"),
        ([], "does not say which"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "copies.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"copies\.json: .*{message}"):
        read_copies(path)
    with pytest.raises(InputError, match="no such file"):
        read_copies(tmp_path / "other.json")
