"""Labelled text is read from every format alike, and bad data is named by file and row."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from labelled import make_rows, write_jsonl
from siren_runtime.errors import InputError
from siren_train.data.reading import sampled
from siren_train.data.rows import Columns, Row, read_all, read_rows
from siren_train.data.sources import Source, parse_source

ROWS = make_rows(30)


def read(*arguments: str, columns: Columns | None = None) -> list[Row]:
    return list(read_all([parse_source(a) for a in arguments], columns or Columns()))


def contents(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(r.split, r.text, r.label, r.category, r.id) for r in rows]


def test_prompt_and_response_are_joined_and_cleaned(tmp_path: Path) -> None:
    row = {"prompt": "a  b", "response": "<|eot_id|>c", "label": 1, "split": "test"}
    safe = {"text": "d", "label": "safe", "split": "test"}
    first, second = read(str(write_jsonl(tmp_path / "data.jsonl", [row, safe])))
    assert (first.text, first.label, first.dataset) == ("a b\n c", 1, "data")
    assert (second.text, second.label) == ("d", 0)


def test_csv_gives_the_rows_of_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    expected = read(str(write_jsonl(tmp_path / "data.jsonl", ROWS)))
    assert contents(read(str(path))) == contents(expected)


def test_parquet_gives_the_rows_of_jsonl(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "data.parquet")
    expected = read(str(write_jsonl(tmp_path / "data.jsonl", ROWS)))
    assert contents(read(str(tmp_path / "data.parquet"))) == contents(expected)


def test_a_hub_data_set_brings_its_own_splits(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "toxic-chat"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        write_jsonl(folder / f"{split}.jsonl", [r for r in ROWS if r["split"] == split])
    rows = read(f"hub:{folder}")
    expected = read(str(write_jsonl(tmp_path / "data.jsonl", ROWS)))
    assert sorted(contents(rows)) == sorted(contents(expected))
    assert {row.dataset for row in rows} == {"toxic-chat"}


@pytest.fixture
def configured(tmp_path: Path) -> str:
    """A hub data set of two configurations, with two splits and one."""
    pytest.importorskip("datasets")
    folder = tmp_path / "mix"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ROWS[:20])
    write_jsonl(folder / "dev.jsonl", ROWS[20:])
    (folder / "README.md").write_text(
        """---
configs:
- config_name: both
  data_files: [{split: train, path: train.jsonl}, {split: dev, path: dev.jsonl}]
- config_name: one
  data_files: [{split: train, path: train.jsonl}]
---
"""
    )
    return f"hub:{folder}"


def test_a_part_of_a_hub_data_set_is_chosen(configured: str) -> None:
    rows = read(f"train={configured}:one", f"validation={configured}:both@dev")
    assert [row.split for row in rows] == ["train"] * 20 + ["validation"] * 10
    assert {row.dataset for row in rows} == {"mix"}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("", "cannot be loaded: .*both"),
        (":both@test", "has the splits train, dev; one of them is written hub:NAME:CONFIG@train"),
        (":both", "has the splits train, dev"),
    ],
)
def test_splits_of_a_hub_data_set_are_not_mixed(configured: str, part: str, message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        read(f"test={configured}{part}")


def test_a_damaged_row_of_a_hub_data_set_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(GOOD) + '\n{"text": \n')
    with pytest.raises(InputError, match=r"hub:.*broken, train after row \d: "):
        read(f"hub:{folder}")


def test_a_split_before_the_path_overrides_the_column(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", ROWS)
    assert {row.split for row in read(f"held-out={path}")} == {"held-out"}


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    rows = [
        {"q": "a", "a": "b", "verdict": "bad", "part": "test"},
        {"q": "c", "a": "", "verdict": "good", "part": "test"},
    ]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    columns = Columns(text=("q", "a"), label="verdict", split="part", classes=("good", "bad"))
    assert [(r.text, r.label) for r in read(str(path), columns=columns)] == [("a\nb", 1), ("c", 0)]


GOOD = {"id": "g", "text": "x", "label": 0, "split": "train"}
BAD_ROWS: dict[str, tuple[Any, str]] = {
    "no label column": ({"text": "x", "split": "train"}, "no column 'label'; found text, split"),
    "no text column": ({"label": 1, "split": "train"}, "nothing to score"),
    "no split column": ({"text": "x", "label": 1}, "no column 'split'"),
    "empty split": ({"text": "x", "label": 1, "split": ""}, "column 'split' is empty"),
    "label out of range": ({**GOOD, "label": 2}, "is 2; expected one of safe, harmful"),
    "negative label": ({**GOOD, "label": -1}, "is -1"),
    "unknown label": ({**GOOD, "label": "awful"}, "is 'awful'"),
    "fractional label": ({**GOOD, "label": 0.5}, "is 0.5"),
    "null label": ({**GOOD, "label": None}, "is None"),
    "label of another script": ({**GOOD, "label": "\u00b2"}, "is '\u00b2'"),
    "label of endless digits": ({**GOOD, "label": "1" * 5000}, "is '1111"),
    "split that leaves the folder": ({**GOOD, "split": "../../x"}, "column 'split' is '../../x'"),
    "split that is no string": ({**GOOD, "split": 3}, "column 'split' is 3; expected a string"),
    "duplicate id": (GOOD, "id 'g' is already that of"),
    "category that is an object": ({**GOOD, "category": {"hate": True}}, "'category' is {'hate'"),
    "categories that are numbers": ({**GOOD, "category": ["a", 3]}, "'category' is ['a', 3]"),
    "source that is a list": ({**GOOD, "source": ["a"]}, "column 'source' is ['a']; expected a st"),
    "text is a number": ({**GOOD, "id": "n", "text": 5}, "text must be a str"),
    "lone surrogate": ({**GOOD, "id": "n", "text": "\ud800"}, "lone surrogate"),
    "not an object": ([1], "expected a JSON object"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [GOOD, row])
    with pytest.raises(InputError, match=r"data\.jsonl, row 2: ") as error:
        read(str(path))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (json.dumps(GOOD).encode() + b'\n{"text": "\xff"}\n', "row 2: not UTF-8: byte 10 is 0xff"),
        (b'{"text": \n', "row 1: not JSON"),
        (b'{"label": ' + b"1" * 5000 + b"}\n", "row 1: not JSON"),
        (b'{"text": "a", "text": "b"}', "row 1: an object names the key 'text' twice"),
        (b"", "data.jsonl: no rows"),
        (
            json.dumps(GOOD).encode(),
            "data.jsonl: the train split has 1 rows, none of class 'harmful'",
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        read(str(path))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("data.csv", b"text,label,split\nx,1\n", "row 1: has another number of columns"),
        ("data.csv", b"text,label,label\nx,1,0\n", "names column 'label' 2 times"),
        ("data.csv", b"text,label,split\nx\xff,1,test\n", "line 2: not UTF-8"),
        ("data.parquet", b"PAR1 and then nothing", "after row 0: not readable parquet"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        read(str(tmp_path / name))
    assert name in str(error.value)
    assert message in str(error.value)


def test_a_parquet_column_named_twice_is_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([["x"], [1], [0]], ["text", "label", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(InputError, match=r"data\.parquet: the header names column 'label' 2 times"):
        read(str(tmp_path / "data.parquet"))


def test_parquet_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    ends = np.array([0, 1, 2], np.int32).tobytes()
    texts = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(b"a\xff")]
    )
    table = pyarrow.table({"text": texts, "label": [0, 1], "split": ["test", "test"]})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(InputError, match=r"data\.parquet, row 2: not UTF-8: byte 0 is 0xff"):
        read(str(tmp_path / "data.parquet"))


def test_a_named_text_column_holds_text(tmp_path: Path) -> None:
    chat = {**GOOD, "id": "c", "text": [{"role": "user", "content": "x"}]}
    path = write_jsonl(tmp_path / "data.jsonl", [GOOD, chat])
    with pytest.raises(InputError, match=r"data\.jsonl, row 2: text must be a str, found list"):
        read(str(path), columns=Columns(text=("text",)))


def test_text_goes_before_prompt_and_response(tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": "p"}, {**GOOD, "id": "b", "label": 1, "text": "", "prompt": "p"}]
    assert [r.text for r in read(str(write_jsonl(tmp_path / "data.jsonl", rows)))] == ["x", "p"]


def test_a_list_of_categories_is_each_of_them_and_what_is_empty_is_none(tmp_path: Path) -> None:
    values = [["hate", "violence"], ["a  b"], [], None, "hate+violence"]
    rows = [{**GOOD, "id": None, "category": value} for value in values]
    jsonl = parse_source(str(write_jsonl(tmp_path / "data.jsonl", rows)))
    lists = pyarrow.Table.from_pylist(rows[:4])
    pyarrow.parquet.write_table(lists, tmp_path / "lists.parquet")
    holes = {"text": ["x"], "label": [0], "split": ["test"]}
    holes |= {"category": [np.nan], "source": [np.nan]}
    pyarrow.parquet.write_table(pyarrow.table(holes), tmp_path / "holes.parquet")
    expected = ["hate+violence", "a b", "", "", "hate+violence"]
    assert [row.category for row in read_rows(jsonl, Columns())] == expected
    assert [row.labels for row in read_rows(jsonl, Columns())][::4] == [("hate", "violence")] * 2
    lists_source, holes_source = (
        parse_source(str(tmp_path / f"{name}.parquet")) for name in ("lists", "holes")
    )
    assert [row.category for row in read_rows(lists_source, Columns())] == expected[:4]
    (row,) = read_rows(holes_source, Columns())
    assert (row.category, row.source, row.labels) == ("", "", ())


def test_rows_without_an_id_are_not_duplicates(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("id,text,label,split\n,a,0,test\n,b,1,test\n")
    assert [row.id for row in read(str(tmp_path / "data.csv"))] == [None, None]
    columns = {"id": [np.nan, np.nan], "text": ["a", "b"], "label": [0, 1], "split": ["test"] * 2}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "data.parquet")
    assert [row.id for row in read(str(tmp_path / "data.parquet"))] == [None, None]


def test_ids_are_unique_over_the_files_of_a_data_set(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "id": "h", "label": 1}]
    paths = [tmp_path / part / "data.jsonl" for part in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        write_jsonl(path, rows)
    with pytest.raises(InputError) as error:
        read(f"train={paths[0]}", f"test={paths[1]}")
    assert f"{paths[1]}, row 1: id 'g' is already that of {paths[0]}, row 1" in str(error.value)
    assert len(read(str(paths[0]), str(write_jsonl(tmp_path / "other.jsonl", rows)))) == 4


def test_two_files_of_one_name_are_not_taken_for_one_data_set(tmp_path: Path) -> None:
    """Figures are of data sets: the mean of two would be that of all their rows."""
    paths = [tmp_path / part / "test.jsonl" for part in ("toxic", "hate")]
    for path in paths:
        path.parent.mkdir()
        write_jsonl(path, [{k: v for k, v in row.items() if k != "id"} for row in ROWS])
    with pytest.raises(InputError, match="would both be the data set 'test'"):
        read(*map(str, paths))
    first, second = Source("hub:one/set"), Source("hub:another/set")
    assert first.is_taken_for(second)
    assert not first.is_taken_for(Source("hub:one/set:more"))
    assert not Source("a/x.csv", "train").is_taken_for(Source("b/x.csv", "test"))


@pytest.mark.parametrize(("most", "taken"), [(6, 6), (3, 3), (1, 3), (None, 30)])
def test_a_sample_has_so_many_rows_of_all_classes(most: int | None, taken: int) -> None:
    labels = [label for label in (0, 1, 2) for _ in range(10)]
    rows = [Row("o", "data", "train", "a text", label, "", None) for label in labels]
    assert len(sampled(rows, most)) == taken


def test_a_file_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", ROWS)
    (tmp_path / "link.jsonl").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for again in ("data.jsonl", "./data.jsonl", "validation=data.jsonl", "link.jsonl"):
        with pytest.raises(InputError, match=r"has rows that .*data\.jsonl gives already"):
            read(f"train={path}", again)


def test_a_part_of_a_hub_data_set_is_given_once() -> None:
    whole, part, other = (Source(f"hub:org/set{end}") for end in ("", "@train", "@test"))
    assert part.overlaps(whole)
    assert whole.overlaps(part)
    assert part.overlaps(Source("hub:org/set@train", "validation"))
    assert not part.overlaps(other)
    assert not whole.overlaps(Source("hub:org/set:extra"))


def test_a_long_text_in_csv_is_read_whole(tmp_path: Path) -> None:
    text = "word " * 40_000
    (tmp_path / "data.csv").write_text(f"text,label,split\n{text},0,test\nb,1,test\n")
    assert read(str(tmp_path / "data.csv"))[0].text == text.strip()


def test_a_category_stands_in_one_line_of_utf8(tmp_path: Path) -> None:
    rows = [{**GOOD, "category": "a\n\ud800"}, {**GOOD, "id": "h", "label": 1}]
    assert read(str(write_jsonl(tmp_path / "data.jsonl", rows)))[0].category == "a \\ud800"


def test_a_hub_data_set_has_a_name() -> None:
    with pytest.raises(InputError, match="expected hub:NAME"):
        parse_source("hub:")


@pytest.mark.parametrize("argument", ["missing.jsonl", "train=missing.csv"])
def test_a_missing_file_is_named(argument: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        parse_source(argument)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.xlsx").touch()
    with pytest.raises(InputError, match="expected one of"):
        parse_source(str(tmp_path / "data.xlsx"))


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a=b.jsonl", ROWS)
    assert parse_source(str(path)) == Source(str(path))


def test_responses_beside_text_that_is_not_read_are_told_once_of_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lone = {"promt": "How do I?", "response": "OK", "label": 1, "split": "test"}
    whole = {"prompt": "And I?", "response": "No", "label": 0, "split": "test", "note": "a joke"}
    path = str(write_jsonl(tmp_path / "typed.jsonl", [lone, whole, lone]))
    assert [row.text for row in read(path)] == ["OK", "And I?\nNo", "OK"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: of 2 rows the response is read alone: they have no prompt, and the text in "
        "column 'promt' is not read; where it is the prompt, give --text promt,response"
    ]


def test_of_each_column_beside_responses_its_own_rows_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lone = {"response": "OK", "label": 1, "split": "test"}
    columns = [{"promt": "How do I?"}, {"note": "a joke"}, {"promt": "And I?"}]
    path = str(write_jsonl(tmp_path / "data.jsonl", [lone | beside for beside in columns]))
    with pytest.raises(InputError, match="none of class 'safe'"):
        read(path)
    told = [record.getMessage().removeprefix(f"{path}: ") for record in caplog.records]
    assert [line[:9] for line in told] == ["of 2 rows", "of 1 rows"]
    assert [line.rpartition(" ")[2] for line in told] == ["promt,response", "note,response"]


@pytest.mark.parametrize(
    "beside",
    [
        {"category": "two words", "source": "A set", "id": "row 1"},
        {"text": "This is read."},
        {"prompt": "So is this."},
        {"model": "one-word", "turns": 3, "tags": ["two words"]},
    ],
)
def test_of_responses_that_stand_alone_or_are_not_read_nothing_is_told(
    beside: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"response": "OK", "label": label, "split": "test", **beside} for label in (0, 1)]
    rows[1] |= {"id": "row 2"}
    path = str(write_jsonl(tmp_path / "data.jsonl", rows))
    read(path)
    read(path, columns=Columns(text=("response",)))
    assert not caplog.records
