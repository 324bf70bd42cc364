"""Labelled text -> feature store, through the extractor, chunk by chunk.

A chunk is always the same rows, and it is recorded as done once it is on disk. So an extraction
that was killed goes on where it was: it repeats one chunk at most, and ends with the store of an
undisturbed one. Memory holds one chunk, and for each row under 100 bytes, 8 for each label, and 170
for each of a store whose features are taken.
"""

import hashlib
import shutil
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_export.sources.checkpoint import Checkpoint
from siren_runtime import Guard
from siren_runtime.backends.outputs import FloatArray
from siren_runtime.bundle.files import hidden_place, sha256_of
from siren_runtime.bundle.heads import Pooling
from siren_runtime.bundle.progress import Progress, by_length, silent
from siren_runtime.bundle.types import Precision
from siren_runtime.errors import InputError, SirenError
from siren_runtime.generation.manifest import TrainedOn
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_train.data.chunks import chunks
from siren_train.data.copies import Copies, digest
from siren_train.data.labels import label_values
from siren_train.data.reading import ALL_ROWS, MostRows, Reading
from siren_train.data.rows import Columns, Row
from siren_train.data.sources import Source

from .extractor import build_extractor, extractor_shape, is_engine
from .generator import Generator, GeneratorPool
from .guard_pool import GuardPool
from .locks import locked
from .reuse import Pooled, check_reusable, pooled_by_text
from .store import (
    FORMAT_VERSION,
    Column,
    DataFile,
    DType,
    FeatureStore,
    StoreManifest,
    extractor_folder,
    text_digest,
)

CHUNK_ROWS = 512


def extract(
    sources: Sequence[Source],
    columns: Columns,
    backbone: Checkpoint | Generator,
    folder: Path,
    *,
    model_id: str,
    model_revision: str | None = None,
    poolings: Sequence[Pooling] = ("residual_mean",),
    dtype: DType = "float32",
    max_length: int = 512,
    max_layer: int | None = None,
    precision: Precision = "fp32",
    splits: Collection[str] = (),
    most_rows: MostRows = ALL_ROWS,
    copies: Copies | None = None,
    reuse: FeatureStore | None = None,
    threads: int | None = None,
    chunk_rows: int = CHUNK_ROWS,
    progress: Progress = silent,
) -> FeatureStore:
    """Pool every row of `sources` into a feature store in `folder`, or finish the one there.

    Args:
        backbone: a checkpoint, of which an extractor is exported; or a generator, whose own engine
            pools in its own precision.
        model_id, model_revision: what heads that are trained on the store call the backbone.
        dtype: of the pooled neurons on disk.
        poolings: "residual_last" alone for trajectories, else means.
        max_length: token limit of a text, special tokens included; longer texts lose their end,
            trajectories their middle.
        max_layer: pool only the first so many layers, and compute no further; of a checkpoint.
        precision: of a checkpoint's extractor; it should be the one that will serve the head.
        splits: those whose rows are pooled; none given is all.
        most_rows: of each data set, pool no more.
        copies: also pool changed copies of train rows.
        reuse: a store of the same engine, whose features are taken for the texts that it has.
        threads: of the CPU; None takes all.
        chunk_rows: rows that are pooled before what is done is recorded.
        progress: its stages are the poolings, and it counts rows.

    Raises:
        InputError: the data is unusable, `folder` holds features of something else or of another
            engine, so does `reuse`, or another extraction is at work there.
        CheckpointError, BundleError, BackendError: the backbone or its engine is unusable.
    """
    _check_use(columns, backbone, poolings, copies)
    if max_layer is not None and isinstance(backbone, Generator):
        raise InputError("a generator computes all layers; choose by training's max_layer instead")
    facts = _facts(backbone, precision)
    reading = Reading(sources, columns, splits=splits, most_rows=most_rows, copies=copies)
    scan = _scan(reading, max_length)
    manifest = StoreManifest(
        format_version=FORMAT_VERSION,
        model_id=model_id,
        model_revision=model_revision,
        backbone_sha256=facts.digest,
        precision=facts.precision,
        max_length=max_length,
        poolings=list(poolings),
        dtype=dtype,
        layers=min(facts.layers, max_layer or facts.layers),
        channels=facts.channels,
        classes=list(columns.classes),
        labels=list(columns.labels),
        datasets=scan.datasets,
        collections=scan.collections,
        splits={split: len(known["labels"]) for split, known in scan.columns.items()},
        sources=[_data_file(source) for source in sources],
        max_train_rows=most_rows.each,
        max_train_rows_of=dict(most_rows.of),
        copies=digest(copies) if copies else None,
        prefixes=columns.prefixes,
        rows_sha256=scan.rows_sha256,
        generator=facts.trained_on,
        left_out=reading.left_out,
    )
    if reuse is not None:
        check_reusable(reuse, manifest, poolings)
    with locked(folder, "siren extract"), hidden_place(folder / "extractors") as made:
        there = FeatureStore.find(folder, manifest)  # another is refused before extractors are made
        kept = {} if there is None else _kept_engines(there, backbone)
        engines = {
            pooling: kept.get(pooling)
            or _make_extractor(backbone, extractor_folder(made, pooling), manifest, pooling)
            for pooling in poolings
        }
        manifest = msgspec.structs.replace(manifest, engines=engines)
        if reuse is not None:
            reuse.check_engines(manifest)
        store = FeatureStore.create(folder, manifest, scan.columns)
        for pooling in engines.keys() - kept.keys():
            extractor = extractor_folder(folder, pooling)
            shutil.rmtree(extractor, ignore_errors=True)
            extractor_folder(made, pooling).rename(extractor)
        for pooling in poolings:
            extractor = extractor_folder(folder, pooling)
            with _pool_of(backbone, extractor, manifest, pooling, threads) as pool:
                known = pool if reuse is None else _but_for(pooled_by_text(reuse, pooling), pool)
                tell = by_length(progress, pooling, scan.lengths)
                _fill(store, pooling, known, reading.rows(), chunk_rows, tell)
    return store


def _check_use(
    columns: Columns,
    backbone: Checkpoint | Generator,
    poolings: Sequence[Pooling],
    copies: Copies | None,
) -> None:
    if not columns.trajectories and "residual_last" not in poolings:
        return
    if not columns.trajectories or list(poolings) != ["residual_last"]:
        raise InputError("the last token is read of trajectories, and only that is")
    if isinstance(backbone, Generator) or copies is not None or columns.labels:
        raise InputError(
            "trajectories are read by a backbone's own files, not by a generator's folder, and "
            "have neither copies nor labels"
        )


Pool = Callable[[Sequence[Row]], Sequence[FloatArray]]  # float32 [layers * channels] of each row


@dataclass(frozen=True)
class _Facts:
    """What a store says of its backbone."""

    layers: int
    channels: int
    digest: str
    precision: Precision
    trained_on: TrainedOn | None


def _facts(backbone: Checkpoint | Generator, precision: Precision) -> _Facts:
    if isinstance(backbone, Generator):
        folder, trained_on = backbone.folder, backbone.trained_on()
        return _Facts(
            folder.blocks, folder.hidden_size, trained_on.engine, backbone.precision, trained_on
        )
    layers, channels = extractor_shape(backbone)
    return _Facts(layers, channels, backbone.digest(), precision, None)


def _kept_engines(store: FeatureStore, backbone: Checkpoint | Generator) -> dict[Pooling, str]:
    """The digests of the extractors in a store that are those that it says have pooled.

    A generator's is made anew, which takes a moment: its weights are links, and its folder has
    files that the digest says nothing of.
    """
    if isinstance(backbone, Generator):
        return {}
    return {
        pooling: engine
        for pooling, engine in store.manifest.engines.items()
        if is_engine(extractor_folder(store.folder, pooling), engine, store.manifest)
    }


def _make_extractor(
    backbone: Checkpoint | Generator, output: Path, manifest: StoreManifest, pooling: Pooling
) -> str:
    """Write what pools rows, and return the digest that names it."""
    if isinstance(backbone, Generator):
        return backbone.write_extractor(output, pooling)
    return build_extractor(backbone, output, manifest, pooling)


@contextmanager
def _pool_of(
    backbone: Checkpoint | Generator,
    extractor: Path,
    manifest: StoreManifest,
    pooling: Pooling,
    threads: int | None,
) -> Iterator[Pool]:
    """What pools rows by an extractor."""
    if isinstance(backbone, Generator):
        yield GeneratorPool(backbone, extractor, manifest.max_length, threads).pool
        return
    if pooling == "residual_last":
        with Guard.load(extractor, backend="cpu", threads=threads, **AS_LLM_SIREN) as guard:
            yield lambda rows: _last_states(guard, rows)
        return
    with closing(GuardPool(extractor, threads)) as pool:
        yield pool.pool


def _but_for(pooled: Pooled, pool: Pool) -> Pool:
    """Pool only rows whose text was not pooled before."""

    def both(rows: Sequence[Row]) -> list[FloatArray]:
        found = [pooled.get(text_digest(row)) for row in rows]
        rest = [row for row, features in zip(rows, found, strict=True) if features is None]
        new = iter(pool(rest) if rest else ())
        return [next(new) if features is None else features for features in found]

    return both


def _last_states(guard: Guard, rows: Sequence[Row]) -> list[FloatArray]:
    results = guard.score_each_trajectory([row.trajectory for row in rows], features=True)
    found = []
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, SirenError):
            raise InputError(f"{row.origin}: {result}") from result
        found.append(np.asarray(result.features))
    return found


@dataclass(frozen=True, eq=False)
class _Scan:
    """What is known of all rows before any is pooled.

    Attributes:
        columns: of each split, int64 [rows] each; of labels [rows, labels]; targets float64; texts
            uint64 [rows, 2].
        datasets, collections: names, in the order in which they occur.
        rows_sha256: of every row's split, data set, label and text.
        lengths: of every row in order, as `Row.length`.
    """

    columns: dict[str, dict[Column, NDArray[Any]]]
    datasets: list[str]
    collections: list[str]
    rows_sha256: str
    lengths: "array[int]"


def _scan(reading: Reading, max_length: int) -> _Scan:
    """Read all rows once and check them."""
    datasets: dict[str, int] = {}
    collections: dict[str, int] = {}
    sha256 = hashlib.sha256()
    lengths = array("q")
    known: dict[str, dict[Column, array[Any]]] = {}
    names = reading.columns.labels
    for row in reading.rows():
        lengths.append(row.length(max_length))
        values = known.setdefault(row.split, {name: _no_values(name) for name in get_args(Column)})
        originals = values["originals"]
        originals.append(originals[-1] if row.is_copy else len(originals))
        values["texts"].frombytes(text_digest(row))
        values["labels"].append(row.label)
        labels = label_values(row, names)
        values["categories"].extend(labels)
        values["datasets"].append(datasets.setdefault(row.dataset, len(datasets)))
        collection = f"{row.dataset}/{row.source}" if row.source else row.dataset
        values["collections"].append(collections.setdefault(collection, len(collections)))
        identity = row.split, row.dataset, row.label, row.text
        told: list[Any] = [labels] if labels else []
        if row.target is not None:
            values["targets"].append(row.target)
            told.append(row.target)
        if row.skipped:
            told.append(row.skipped)
        sha256.update(msgspec.json.encode((*identity, *told)))
    arrays = {split: _arrays(values, names) for split, values in known.items()}
    if names:
        _check_labels(arrays, names, reading.sources)
    return _Scan(arrays, list(datasets), list(collections), sha256.hexdigest(), lengths)


def _no_values(name: Column) -> "array[Any]":
    return array({"targets": "d", "texts": "Q"}.get(name, "q"))


def _arrays(
    values: Mapping[Column, "array[Any]"], labels: Sequence[str]
) -> dict[Column, NDArray[Any]]:
    """Those of which there are any."""
    arrays = {name: np.asarray(column) for name, column in values.items() if column}
    arrays["texts"] = arrays["texts"].reshape(-1, 2)
    if labels:
        arrays["categories"] = arrays["categories"].reshape(-1, len(labels))
    return arrays


def _check_labels(
    arrays: Mapping[str, Mapping[Column, NDArray[Any]]],
    labels: Sequence[str],
    sources: Sequence[Source],
) -> None:
    """Refuse labels that no row of a split names, or all do: nothing could be learned of them."""
    where = ", ".join(source.location for source in sources)
    for split in [split for split in ("train", "validation") if split in arrays]:
        categories = arrays[split]["categories"]
        for value, told in ((1, "no row has"), (0, "all rows with categories have")):
            found = (categories == value).any(axis=0)
            lacking = [repr(name) for name, there in zip(labels, found, strict=True) if not there]
            if lacking:
                raise InputError(
                    f"{where}: of the {split} split {told} {', '.join(lacking)}; a label is "
                    "learned from rows with it and without; a row has labels joined by +"
                )


def _fill(
    store: FeatureStore,
    pooling: Pooling,
    pool: Pool,
    rows: Iterable[Row],
    chunk_rows: int,
    tell: Callable[[int], None],
) -> None:
    """Pool the rows that are not recorded as done, and record each chunk when it is on disk."""
    manifest = store.manifest
    arrays = {split: store.array(split, pooling, writable=True) for split in manifest.splits}
    filled = dict.fromkeys(manifest.splits, 0)
    done, recorded = 0, store.rows_done().get(pooling, 0)
    tell(recorded)
    for chunk in chunks(rows, chunk_rows):
        places = []  # of each row of the chunk, in its split
        for row in chunk:
            places.append(filled[row.split])
            filled[row.split] += 1
        done += len(chunk)
        if done <= recorded:
            continue
        for row, place, features in zip(chunk, places, pool(chunk), strict=True):
            values = features.astype(manifest.dtype)
            if not np.isfinite(values).all():
                raise InputError(f"{row.origin}: a feature exceeds {manifest.dtype}; store float32")
            arrays[row.split][place] = values.reshape(manifest.layers, manifest.channels)
        for mapped in arrays.values():
            mapped.flush()
        store.record(pooling, done)
        tell(done)


def _data_file(source: Source) -> DataFile:
    if source.is_hub:
        return DataFile(source.name, source.split, None)
    return DataFile(source.name, source.split, sha256_of(Path(source.location)))
