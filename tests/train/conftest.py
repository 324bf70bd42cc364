"""A tiny feature store, made by the real engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backbones import MAX_LENGTH
from labelled import make_rows, write_jsonl
from siren_export.sources.checkpoint import load_checkpoint
from siren_train.data.rows import Columns
from siren_train.data.sources import parse_source
from siren_train.store.extract import extract
from siren_train.store.store import FeatureStore


@pytest.fixture(scope="session")
def make_store(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Callable[..., FeatureStore]:
    """Return a function that extracts a small store of two data sets; do not change it."""

    def make(*, classes: int = 2, rows: int = 240, backbone: str = "bert") -> FeatureStore:
        folder = tmp_path_factory.mktemp("store")
        names = ("safe", "harmful", "odd")[:classes]
        paths = [
            write_jsonl(folder / f"{name}.jsonl", make_rows(rows, classes=classes, name=name))
            for name in ("first", "second")
        ]
        source = backbone_folder(backbone)
        return extract(
            [parse_source(str(path)) for path in paths],
            Columns(classes=names),
            load_checkpoint(str(source)),
            folder / "store",
            model_id=str(source),
            max_length=48,
            threads=1,
        )

    return make


@pytest.fixture(scope="session")
def store(make_store: Callable[..., FeatureStore]) -> FeatureStore:
    """A store of two classes and two data sets, 480 rows."""
    return make_store()


@pytest.fixture
def extract_rows(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> Callable[..., FeatureStore]:
    """Extract 60 rows in chunks of 8."""
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(60))

    def extract_to(
        folder: Path,
        backbone: str = "bert",
        source: Path | None = None,
        columns: Columns | None = None,
        **options: Any,
    ) -> FeatureStore:
        source = source or backbone_folder(backbone)
        return extract(
            [parse_source(str(data))],
            columns or Columns(),
            load_checkpoint(str(source)),
            folder,
            **{
                "model_id": str(source),
                "max_length": MAX_LENGTH,
                "threads": 1,
                "chunk_rows": 8,
                **options,
            },
        )

    return extract_to
