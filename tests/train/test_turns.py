"""Prompt and response of a row are what a guard is given."""

from pathlib import Path
from typing import Any

import pytest

from labelled import write_jsonl
from siren_runtime.scoring.call import Text
from siren_runtime.text.passage import make_passage
from siren_train.data.rows import Columns, read_rows
from siren_train.data.sources import parse_source


@pytest.mark.parametrize(
    ("row", "text", "turns"),
    [
        ({"text": " ", "prompt": "p", "response": "r"}, "p\nr", ("p", "r")),
        ({"text": "\n", "prompt": "p"}, "p", ()),
        ({"text": " ", "prompt": "", "response": None}, " ", ()),
        ({"text": " "}, " ", ()),
        ({"text": "x", "prompt": "p", "response": "r"}, "x", ()),
    ],
)
def test_a_blank_text_leaves_a_row_its_prompt_and_response(
    tmp_path: Path, row: dict[str, Any], text: str, turns: tuple[str, ...]
) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [{"label": 0, "split": "test", **row}])
    (found,) = read_rows(parse_source(str(path)), Columns())
    assert (found.text, found.turns, found.has_response) == (text, turns, bool(turns))


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("how", "so"),
        ("how \t", "  so"),
        ("one\n\ntwo\n\n\n", "\n\nso"),
        ("how<|eot_id|>", "<|eot_id|> so"),
        ("how\u00a0", "\u2028so"),
        ("how", " "),
        (" ", "so"),
        ("", "so"),
        ("how", ""),
    ],
)
def test_a_guard_is_given_prompt_and_response_as_a_caller_gives_them(
    tmp_path: Path, prompt: str, response: str
) -> None:
    row = {"prompt": prompt, "response": response, "label": 1, "split": "test"}
    (found,) = read_rows(parse_source(str(write_jsonl(tmp_path / "d.jsonl", [row]))), Columns())

    def read_of(given: Text) -> tuple[str, bool, int]:
        """What is read, whether as a response, and where that begins; at the ends is nowhere."""
        text, *both = (given, None, None) if isinstance(given, str) else (None, *given)
        passage = make_passage(text, *both, max_bytes=100)
        return passage.cleaned, passage.has_response, (passage.boundary or 0) % len(passage.cleaned)

    assert read_of(found.given) == read_of((prompt, response))


def test_a_response_that_is_named_last_is_one_behind_all_that_stands_before(
    tmp_path: Path,
) -> None:
    row = {"rules": "be kind", "question": "how", "response": "so", "label": 1, "split": "test"}
    source = parse_source(str(write_jsonl(tmp_path / "data.jsonl", [row])))
    (found,) = read_rows(source, Columns(text=("rules", "question", "response")))
    assert found.turns == ("be kind\nhow", "so")
    assert found.given == found.turns
    (found,) = read_rows(source, Columns(text=("response", "question")))
    assert (found.turns, found.given) == ((), (None, "so\nhow"))
