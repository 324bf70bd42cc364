"""Tables of labels: which categories are of which label, and which of OpenAI's keys."""

import json

import pytest

from siren_runtime.bundle.heads import OPENAI_KEYS
from siren_runtime.bundle.shipped import ENGINES
from siren_runtime.errors import InputError
from siren_train.data.labels import read_label_table
from siren_train.data.rows import Columns
from siren_train.fit.openai_keys import read_table, table_by_names


def test_a_table_says_which_categories_are_of_which_label(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text('{"hate": ["H", "*: slurs"], "none": [], "violence": ["V", "*: slurs"]}')
    table = read_label_table(path)
    assert list(table) == ["hate", "violence"]
    columns = Columns(labels=tuple(table), label_table=table)
    assert columns.labels_of("H + V") == ("hate", "violence")
    assert columns.labels_of("forum: slurs") == ("hate", "violence")
    assert columns.labels_of("hate") == ()
    every = Columns(labels=("any",), label_table={"any": ("*",)})
    assert [every.labels_of(category) for category in ("H", "")] == [("any",), ()]
    path.write_text('{"hate": "H"}')
    with pytest.raises(InputError, match="lists of categories"):
        read_label_table(path)


def test_the_shipped_table_names_each_of_openais_keys():
    path = ENGINES / "categories.json"
    table = json.loads(path.read_text())
    assert set(table) == set(OPENAI_KEYS)
    covered = [key for key, names in table_by_names([*read_label_table(path)]).items() if names]
    assert covered == [key for key in OPENAI_KEYS if table[key]]


def test_the_table_of_openai_keys_follows_names_or_a_file(tmp_path):
    table = table_by_names(["S", "H2", "Self_Harm", "violence graphic", "other"])
    assert set(table) == set(OPENAI_KEYS)
    assert table["sexual"] == ["S"]
    assert table["hate/threatening"] == ["H2"]
    assert table["self-harm"] == ["Self_Harm"]
    assert table["illicit"] == []
    path = tmp_path / "table.json"
    path.write_text('{"hate": ["a", "b"]}')
    assert read_table(path, ["a", "b"])["hate"] == ["a", "b"]
    for bad, match in (
        ('{"hat": ["a"]}', r"unknown \['hat'\]"),
        ('{"hate": ["c"]}', r"by \['c'\]"),
        ('{"hate": "a"}', "keys and lists"),
        ("", "keys and lists"),
    ):
        path.write_text(bad)
        with pytest.raises(InputError, match=match):
            read_table(path, ["a", "b"])
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "none.json", [])
