"""Labelled text -> feature store, through an extractor bundle, chunk by chunk.

A chunk is always the same rows, and progress is recorded when a chunk is on disk, so extraction
that was killed goes on without losing or redoing more than a chunk, and ends as if undisturbed.
Memory is that of a chunk, and under 100 bytes a row for what is known of it.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from siren_export.sources.checkpoint import Checkpoint
from siren_runtime import Guard
from siren_runtime.bundle.heads import Pooling
from siren_runtime.bundle.types import Precision
from siren_runtime.errors import InputError
from siren_train.data.rows import Columns, Row, Source, read_all, read_rows
from siren_train.data.wrapping import Wrapping, digest, wrap_rows

from .extractor import build_extractor, extractor_shape
from .features import IntArray
from .files import locked
from .store import (
    FORMAT_VERSION,
    Column,
    DataFile,
    DType,
    FeatureStore,
    StoreManifest,
    extractor_folder,
)

CHUNK_ROWS = 512

Progress = Callable[[Pooling, int, int], None]  # pooling; rows done; rows in all


def extract(
    sources: Sequence[Source],
    columns: Columns,
    checkpoint: Checkpoint,
    folder: Path,
    *,
    model_id: str,
    model_revision: str | None = None,
    poolings: Sequence[Pooling] = ("residual_mean",),
    dtype: DType = "float32",
    max_length: int = 512,
    precision: Precision = "fp32",
    wrapping: Wrapping | None = None,
    threads: int | None = None,
    progress: Progress = lambda pooling, done, total: None,
) -> FeatureStore:
    """Pool every row of `sources` into a feature store in `folder`, or finish the one there.

    Args:
        max_length: token limit, special tokens included; longer texts lose their end.
        precision: of the extractor; the precision that will serve the head.
        wrapping: also pool copies of train rows that are wrapped in this.

    Raises:
        InputError: the data is unusable, or `folder` holds features of something else, or
            another extraction is at work there.
        CheckpointError, BundleError, BackendError: the backbone or its engine is unusable.
    """
    layers, channels = extractor_shape(checkpoint)
    known, names, rows_sha256 = _scan(sources, columns, wrapping)
    manifest = StoreManifest(
        format_version=FORMAT_VERSION,
        model_id=model_id,
        model_revision=model_revision,
        backbone_sha256=checkpoint.digest(),
        precision=precision,
        max_length=max_length,
        poolings=list(poolings),
        dtype=dtype,
        layers=layers,
        channels=channels,
        classes=list(columns.classes),
        datasets=names,
        splits={split: len(values["labels"]) for split, values in known.items()},
        sources=[_data_file(source) for source in sources],
        wrapping=digest(wrapping) if wrapping else None,
        rows_sha256=rows_sha256,
    )
    with locked(folder, "siren extract"):
        store = FeatureStore.create(folder, manifest, known)
        for pooling in poolings:
            bundle = extractor_folder(folder, pooling)
            build_extractor(
                checkpoint,
                bundle,
                model_id=model_id,
                model_revision=model_revision,
                pooling=pooling,
                max_length=max_length,
                precision=precision,
            )
            with Guard.load(bundle, backend="cpu", threads=threads) as guard:
                _fill(store, pooling, guard, sources, columns, wrapping, progress)
    return store


def _scan(
    sources: Sequence[Source], columns: Columns, wrapping: Wrapping | None
) -> tuple[dict[str, dict[Column, IntArray]], list[str], str]:
    """Read all data once and check it.

    Returns what is known of each split's rows, the data sets, and the SHA-256 of the rows.
    """
    names: list[str] = []
    sha256 = hashlib.sha256()
    known: dict[str, dict[Column, array[int]]] = {}
    for row in wrap_rows(read_all(sources, columns), wrapping):
        if row.dataset not in names:
            names.append(row.dataset)
        values = known.setdefault(
            row.split, {"labels": array("q"), "datasets": array("q"), "originals": array("q")}
        )
        originals = values["originals"]
        originals.append(originals[-1] if row.is_copy else len(originals))
        values["labels"].append(row.label)
        values["datasets"].append(names.index(row.dataset))
        sha256.update(msgspec.json.encode((row.split, row.dataset, row.label, row.text)))
    for name in wrapping.copies if wrapping else ():
        if name not in names:
            raise InputError(
                f"the wrapping asks for copies of {name!r}, but the data sets are "
                f"{', '.join(names)}"
            )
    columns_of = {
        split: {name: np.array(column, np.int64) for name, column in values.items()}
        for split, values in known.items()
    }
    return columns_of, names, sha256.hexdigest()


def _fill(
    store: FeatureStore,
    pooling: Pooling,
    guard: Guard,
    sources: Sequence[Source],
    columns: Columns,
    wrapping: Wrapping | None,
    progress: Progress,
) -> None:
    manifest = store.manifest
    arrays = {split: store.array(split, pooling, writable=True) for split in manifest.splits}
    filled = dict.fromkeys(manifest.splits, 0)
    done, recorded = 0, store.progress().get(pooling, 0)
    progress(pooling, recorded, manifest.rows)
    rows = (row for source in sources for row in read_rows(source, columns))
    for chunk in _chunks(wrap_rows(rows, wrapping)):
        if done >= recorded:
            results = guard.score_batch([row.text for row in chunk], features=True)
            for position, row, result in zip(
                _positions(chunk, filled), chunk, results, strict=True
            ):
                values = np.asarray(result.features).astype(manifest.dtype)
                if not np.isfinite(values).all():
                    raise InputError(
                        f"{row.origin}: a feature exceeds {manifest.dtype}; store float32"
                    )
                arrays[row.split][position] = values.reshape(manifest.layers, manifest.channels)
            for values in arrays.values():
                values.flush()
            store.record(pooling, done + len(chunk))
            progress(pooling, done + len(chunk), manifest.rows)
        for row in chunk:
            filled[row.split] += 1
        done += len(chunk)


def _positions(chunk: Sequence[Row], filled: dict[str, int]) -> Iterator[int]:
    """Where each row stands in its split."""
    position = dict(filled)
    for row in chunk:
        yield position[row.split]
        position[row.split] += 1


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _data_file(source: Source) -> DataFile:
    if source.is_hub:
        return DataFile(source.name, source.split, None)
    return DataFile(source.name, source.split, _sha256(Path(source.location)))


def _sha256(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()
