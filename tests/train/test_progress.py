"""Where rows have different lengths, how far a stage is goes by what was read and not by rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exits import export_with_exits
from labelled import write_jsonl
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from siren_runtime.backends.onnxruntime import cascade
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_train.data.rows import Columns, read_rows
from siren_train.data.sources import Source, parse_source
from siren_train.data.streams import StreamRow
from siren_train.measure.calibrate_spans import score_spans
from siren_train.measure.cascade import score_exits
from siren_train.measure.evaluate import score_rows
from siren_train.measure.traces import trace_streams
from siren_train.store.extract import extract
from tiny_bundle import MAX_LENGTH, make_bundle

SHORT, LONG = 20, 180  # bytes of a text


class Told:
    """What progress told: of so many rows the share of the work."""

    def __init__(self) -> None:
        self.shares: dict[int, float | None] = {}

    def __call__(self, stage: str, done: int, total: int, *, share: float | None = None) -> None:
        self.shares[done] = share


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def sources(tmp_path: Path) -> Callable[..., list[Source]]:
    def write(count: int, long: int = LONG) -> list[Source]:
        """As many short rows as long ones, which come last, of the test split."""
        texts = ["word " * (length // 5) for length in (SHORT, long) for _ in range(count)]
        rows = [
            {"text": text.strip() + ".", "label": number % 2, "split": "test"}
            for number, text in enumerate(texts)
        ]
        return [parse_source(str(write_jsonl(tmp_path / "data.jsonl", rows)))]

    return write


@pytest.mark.parametrize(("long", "read"), [(LONG, LONG), (10_000, 4 * 48)])
def test_an_extraction_counts_what_it_reads(
    told: Told,
    sources: Callable[..., list[Source]],
    backbone_folder: Callable[[str], Path],
    tmp_path: Path,
    long: int,
    read: int,
) -> None:
    """Of longer texts that is so many tokens."""
    backbone = load_checkpoint(backbone_folder("bert"))
    options = {"model_id": "bert", "max_length": 48, "threads": 1, "chunk_rows": 8}
    extract(sources(8, long), Columns(), backbone, tmp_path / "s", **options, progress=told)
    assert told.shares == {0: 0, 8: SHORT / (SHORT + read), 16: 1}


@pytest.mark.parametrize(("long_text", "read"), [("windows", LONG), ("truncate", 4 * MAX_LENGTH)])
def test_an_evaluation_counts_what_the_guard_reads(
    told: Told, sources: Callable[..., list[Source]], tmp_path: Path, long_text: str, read: int
) -> None:
    with Guard.load(
        make_bundle(tmp_path / "b"), **{**AS_LLM_SIREN, "long_text": long_text}
    ) as guard:
        score_rows(guard, sources(512), Columns(), "test", told)
    assert told.shares == {0: 0, 512: SHORT / (SHORT + read), 1024: 1}


def test_a_calibration_by_spans_counts_whole_texts(
    told: Told, sources: Callable[..., list[Source]], tmp_path: Path
) -> None:
    (source,) = sources(64)
    with Guard.load(make_bundle(tmp_path / "b"), **AS_LLM_SIREN) as guard:
        score_spans(guard, [*read_rows(source, Columns())], told)
    assert told.shares == {0: 0, 64: SHORT / (SHORT + LONG), 128: 1}


def test_a_calibration_of_exits_counts_tokens_in_the_order_of_its_batches(
    told: Told,
    sources: Callable[..., list[Source]],
    backbone_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cascade, "token_budget", lambda _: 64)
    bundle = load_bundle(export_with_exits(tmp_path, backbone_folder("bert")))
    found = score_exits(bundle, sources(8), Columns(), "test", None, 1, told)
    read = np.cumsum(np.sort(found.tokens))
    assert told.shares.pop(0) == 0
    assert told.shares == {done: read[done - 1] / read[-1] for done in told.shares}
    assert told.shares[8] < 0.25


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_traces_count_what_is_streamed(told: Told, tmp_path: Path) -> None:
    rows = [
        StreamRow("row", "data", "", "ab " * (length // 3), None)
        for length in (SHORT - 2, LONG - 18)
        for _ in range(16)
    ]
    with Guard.load(make_bundle(tmp_path / "b"), max_unknown=1.0) as guard:
        trace_streams(guard, rows, 3, response_only=False, progress=told)
    assert told.shares[16] == pytest.approx(0.1)
    assert told.shares[32] == 1


def test_a_length_is_in_bytes_of_what_is_read(sources: Callable[..., list[Source]]) -> None:
    row = replace(next(read_rows(sources(1)[0], Columns())), text="é" * 10)
    assert (row.length(), row.length(3), row.length(100)) == (20, 12, 20)
