"""Entries that a long run keeps in a file, one a line, and goes on from."""

import json
from pathlib import Path

import msgspec
import pytest

from siren_runtime.errors import InputError
from siren_train.fit.search import read_history
from siren_train.store.journal import Journal

TRIAL = {"number": 0, "params": {"share": 0.5, "epochs": 5}, "scores": [0.5, 1.0], "pruned": False}


class Entry(msgspec.Struct):
    """An entry of these tests."""

    text: str


def test_the_next_entry_takes_the_place_of_one_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "entries.jsonl"
    path.write_text('{"text":"a"}\n{"text":"b')
    with Journal(path, Entry, "remove it") as journal:
        assert journal.entries == [Entry("a")]
        journal.add(Entry("c"))
    assert path.read_text() == '{"text":"a"}\n{"text":"c"}\n'
    with Journal(path, Entry, "remove it") as journal:
        assert journal.entries == [Entry("a"), Entry("c")]


@pytest.mark.parametrize("line", [b"{}", b"half", b"\xff", b""])
def test_a_damaged_entry_is_named_with_what_to_do(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "entries.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(InputError, match=r"entries\.jsonl: damaged: .*; remove it$"):
        Journal(path, Entry, "remove it")
    assert path.read_bytes() == line + b"\n"


def test_a_history_that_is_read_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    assert read_history(path) == []
    assert not path.exists()
    text = json.dumps(TRIAL) + "\n" + '{"number": '
    path.write_text(text)
    (trial,) = read_history(path)
    assert msgspec.to_builtins(trial) == TRIAL
    assert path.read_text() == text


def test_a_history_without_one_of_its_trials_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(json.dumps({**TRIAL, "number": n}) + "\n" for n in (0, 2)))
    with pytest.raises(InputError, match=r"trials\.jsonl: trials are missing .*; remove it$"):
        read_history(path)
