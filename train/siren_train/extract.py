"""Labelled text -> feature store, through an extractor bundle, chunk by chunk.

A chunk is always the same rows, and progress is recorded when a chunk is on disk, so extraction
that was killed goes on without losing or redoing more than a chunk, and ends as if undisturbed.
Memory is that of a chunk, and 16 bytes a row for labels and data sets.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from siren_export.checkpoint import Checkpoint
from siren_runtime import Guard
from siren_runtime.errors import InputError
from siren_runtime.manifest import Pooling, Precision

from .data import Columns, Row, Source, read_all, read_rows
from .extractor import build_extractor, extractor_shape
from .store import FORMAT_VERSION, DataFile, DType, FeatureStore, StoreManifest

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
    threads: int | None = None,
    progress: Progress = lambda pooling, done, total: None,
) -> FeatureStore:
    """Pool every row of `sources` into a feature store in `folder`, or finish the one there.

    Args:
        max_length: token limit, special tokens included; longer texts lose their end.
        precision: of the extractor; the precision that will serve the head.

    Raises:
        InputError: the data is unusable, or `folder` holds features of something else.
        CheckpointError, BundleError, BackendError: the backbone or its engine is unusable.
    """
    layers, channels = extractor_shape(checkpoint)
    labels, datasets, names = _scan(sources, columns)
    manifest = StoreManifest(
        format_version=FORMAT_VERSION,
        model_id=model_id,
        model_revision=model_revision,
        precision=precision,
        max_length=max_length,
        poolings=list(poolings),
        dtype=dtype,
        layers=layers,
        channels=channels,
        classes=list(columns.classes),
        datasets=names,
        splits={split: len(values) for split, values in labels.items()},
        sources=[_data_file(source) for source in sources],
    )
    store = FeatureStore.create(folder, manifest, labels, datasets)
    for pooling in poolings:
        bundle = folder / f"extractor.{pooling}"
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
            _fill(store, pooling, guard, sources, columns, progress)
    return store


def _scan(
    sources: Sequence[Source], columns: Columns
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Read all data once and check it: the labels and data sets of each split, and their names."""
    names: list[str] = []
    labels: dict[str, array[int]] = {}
    datasets: dict[str, array[int]] = {}
    for row in read_all(sources, columns):
        if row.dataset not in names:
            names.append(row.dataset)
        labels.setdefault(row.split, array("q")).append(row.label)
        datasets.setdefault(row.split, array("q")).append(names.index(row.dataset))
    return (
        {split: np.array(values, np.int64) for split, values in labels.items()},
        {split: np.array(values, np.int64) for split, values in datasets.items()},
        names,
    )


def _fill(
    store: FeatureStore,
    pooling: Pooling,
    guard: Guard,
    sources: Sequence[Source],
    columns: Columns,
    progress: Progress,
) -> None:
    manifest = store.manifest
    arrays = {split: store.array(split, pooling, writable=True) for split in manifest.splits}
    filled = dict.fromkeys(manifest.splits, 0)
    done, recorded = 0, store.progress().get(pooling, 0)
    progress(pooling, recorded, manifest.rows)
    rows = (row for source in sources for row in read_rows(source, columns))
    for chunk in _chunks(rows):
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
        return DataFile(source.location, source.split, None)
    digest = hashlib.sha256()
    with Path(source.location).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return DataFile(source.location, source.split, digest.hexdigest())
