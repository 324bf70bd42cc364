"""Wrapped copies of train rows: harmless sentences around them, and nothing else changed."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelled import make_rows, write_jsonl
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.errors import InputError
from siren_train.data.rows import Columns, Row, read_rows
from siren_train.data.sources import Source, parse_source
from siren_train.data.wrapping import Wrapping, read_wrapping, wrap_rows
from siren_train.fit.folds import make_folds
from siren_train.store.extract import extract
from siren_train.store.features import FeatureSet
from siren_train.store.store import FeatureStore

BEFORE = [f"Before {word}." for word in ("one", "two", "three", "four", "five")]
AFTER = [f"After {word}." for word in ("one", "two", "three", "four")]
WRAPPING = Wrapping({"first": 2}, seed=0, before=BEFORE, after=AFTER)


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
    wrapped = list(wrap_rows(rows, WRAPPING))
    assert [row for row in wrapped if not row.is_copy] == rows
    copies = [row for row in wrapped if row.is_copy]
    assert {(row.dataset, row.split) for row in copies} == {("first", "train")}
    assert len(copies) == 2 * sum(r.dataset == "first" and r.split == "train" for r in rows)


def test_a_copy_is_its_row_in_sentences_of_the_file(sources: list[Source]) -> None:
    original: Row | None = None
    texts = set()
    for row in wrap_rows(rows_of(sources), WRAPPING):
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
    every = [row.text for row in wrap_rows(rows, WRAPPING) if row.is_copy]
    alone = [row.text for one in rows for row in wrap_rows([one], WRAPPING) if row.is_copy]
    assert alone == every
    other = Wrapping(WRAPPING.copies, seed=1, before=BEFORE, after=AFTER)
    assert [row.text for row in wrap_rows(rows, other) if row.is_copy] != every


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
        wrapping=WRAPPING,
        threads=1,
    )


def test_a_copy_stands_in_the_fold_of_its_original(store: FeatureStore) -> None:
    train, validation = (
        store.features(split, "residual_mean") for split in ("train", "validation")
    )
    assert not validation.is_copy.any()
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


def test_another_wrapping_is_another_store(
    store: FeatureStore, sources: list[Source], backbone_folder: Callable[[str], Path]
) -> None:
    source = backbone_folder("bert")
    with pytest.raises(InputError, match="wrapping is"):
        extract(
            sources,
            Columns(),
            load_checkpoint(str(source)),
            store.folder,
            model_id=str(source),
            max_length=48,
            wrapping=Wrapping({"first": 2}, seed=5, before=BEFORE, after=AFTER),
        )


def test_copies_of_a_data_set_that_is_not_there_are_refused(
    sources: list[Source], tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    source = backbone_folder("bert")
    with pytest.raises(InputError, match="copies of 'frist', but the data sets are first, second"):
        extract(
            sources,
            Columns(),
            load_checkpoint(str(source)),
            tmp_path / "store",
            model_id=str(source),
            wrapping=Wrapping({"frist": 2}, seed=0, before=BEFORE, after=AFTER),
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"copies": {"a": -1}, "seed": 0, "before": BEFORE, "after": AFTER}, "copies"),
        ({"copies": {"a": 1}, "seed": 0, "before": ["x"], "after": AFTER}, "1 sentences"),
        ({"copies": {"a": 1}, "seed": 0, "before": BEFORE}, "after"),
        ({"copies": ["a"], "seed": 0, "before": BEFORE, "after": AFTER}, "copies"),
        ([], "not a wrapping"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "wrapping.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"wrapping\.json: .*{message}"):
        read_wrapping(path)
    with pytest.raises(InputError, match="no such file"):
        read_wrapping(tmp_path / "other.json")
