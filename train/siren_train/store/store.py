"""The feature store: pooled neurons of labelled rows on disk, read as memory maps.

store.json                     what the store is of: backbone, poolings, splits, data, classes
extractor.POOLING/             the bundle, or the generator's folder, that pooled the rows
SPLIT.POOLING.npy              float16 or float32 [rows, layers, channels]; residual_last: what is
                               behind each block at the last token, of trajectories
SPLIT.labels.npy, SPLIT.datasets.npy, SPLIT.collections.npy    int64 [rows]
SPLIT.originals.npy            int64 [rows]: the row that a row is a copy of, or itself
SPLIT.texts.npy                uint64 [rows, 2]: the first 16 bytes of a SHA-256 of what was pooled
SPLIT.categories.npy           int64 [rows, labels]: 1, 0, or -1 where not known
SPLIT.targets.npy              float64 [rows]: the expected harm of what follows, of prefixes
progress.json                  rows done of each pooling; extraction goes on from there
.lock                          held by the extraction that is at work
"""

import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_runtime.bundle.files import replacement, write_whole
from siren_runtime.bundle.heads import Pooling
from siren_runtime.bundle.types import Precision
from siren_runtime.errors import InputError
from siren_runtime.generation.manifest import TrainedOn
from siren_train.data.labels import known
from siren_train.data.rows import Row

from .features import FeatureSet

FORMAT_VERSION = 4
STORE_FILE, PROGRESS_FILE = "store.json", "progress.json"

DType = Literal["float16", "float32"]
Column = Literal["labels", "datasets", "collections", "originals", "categories", "targets", "texts"]
# What a head tells, and how.
Target = Literal["harm", "categories", "polynomial", "forecast", "trajectory"]


class DataFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A source of rows: a file by its name and contents, or a hub data set, without `sha256`."""

    name: str
    split: str | None
    sha256: str | None


class StoreManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of store.json.

    Attributes:
        backbone_sha256: of the backbone's files.
        max_length: token limit of a text, special tokens included.
        dtype: of the pooled neurons on disk.
        layers, channels: how many of each were pooled.
        classes, datasets, collections: names; labels, data sets and collections of rows are indices
            into them. A collection is a data set, or what its rows say is their source.
        labels: names of the labels that the categories of rows may hold.
        splits: how many rows each split has, by its name.
        max_train_rows: of each data set, at most so many train rows and a third as many others.
        max_train_rows_of: the same of single data sets, by name.
        prefixes: whether rows are prefixes, which have targets.
        copies: digest of what copies of train rows are made of; None if there are none.
        rows_sha256: of every row's split, data set, label and text.
        generator: where a generator's own engine pooled: its digest, its tokenizer's, and how
            texts stood in it.
        left_out: how many rows are not in it, since their text stands in a split that measures it.
        engines: by pooling, the SHA-256 that names what pooled, of its files; none where an earlier
            release did.
    """

    format_version: int
    model_id: str
    model_revision: str | None
    backbone_sha256: str
    precision: Precision
    max_length: int
    poolings: list[Pooling]
    dtype: DType
    layers: int
    channels: int
    classes: list[str]
    datasets: list[str]
    collections: list[str]
    splits: dict[str, int]
    sources: list[DataFile]
    max_train_rows: int | None
    copies: str | None
    rows_sha256: str
    labels: list[str] = []
    max_train_rows_of: dict[str, int] = {}
    prefixes: bool = False
    generator: TrainedOn | None = None
    left_out: int = 0
    engines: dict[Pooling, str] = {}

    @property
    def rows(self) -> int:
        return sum(self.splits.values())


def text_digest(row: Row) -> bytes:
    """What stores know a row's text by: the same part of the same text in the same turns has the
    same features.
    """
    pooled: list[Any] = [row.text, row.turns]
    if row.skipped:
        pooled.append(row.skipped)
    return hashlib.sha256(msgspec.json.encode(pooled)).digest()[:16]


class _Versioned(msgspec.Struct):
    format_version: int


def extractor_folder(folder: Path, pooling: Pooling) -> Path:
    """Return where a store keeps what pooled it."""
    return folder / f"extractor.{pooling}"


class FeatureStore:
    """A store on disk. Arrays are opened when asked for."""

    def __init__(self, folder: Path, manifest: StoreManifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def create(
        cls,
        folder: Path,
        manifest: StoreManifest,
        columns: Mapping[str, Mapping[Column, NDArray[Any]]],
    ) -> "FeatureStore":
        """Lay out an empty store in `folder`, or open the one there if it is of the same.

        Args:
            columns: of each split, what is known of its rows, int64 [rows] each, or [rows, labels];
                targets float64, texts uint64 [rows, 2].

        Raises:
            InputError: a store of something else is there, or the disk is full.
        """
        if store := cls.find(folder, manifest):
            return store
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROGRESS_FILE).unlink(missing_ok=True)  # of a store that lost its store.json
        for pooling in get_args(Pooling):
            shutil.rmtree(extractor_folder(folder, pooling), ignore_errors=True)
        for split, rows in manifest.splits.items():
            for name, values in columns[split].items():
                column = folder / f"{split}.{name}.npy"
                with replacement(column, InputError) as partial, partial.open("wb") as file:
                    np.save(file, values)
            for pooling in manifest.poolings:
                _allocate(
                    folder / f"{split}.{pooling}.npy",
                    manifest.dtype,
                    (rows, manifest.layers, manifest.channels),
                )
        data = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
        write_whole(folder / STORE_FILE, data, InputError)
        return cls(folder, manifest)

    @classmethod
    def find(cls, folder: Path, manifest: StoreManifest) -> "FeatureStore | None":
        """Open the store in `folder`, complete or not; None where there is none.

        Args:
            manifest: what it must be of. Where that says no engine, any that the store names may
                have pooled.

        Raises:
            InputError: it is of something else, or damaged.
        """
        if not (folder / STORE_FILE).exists():
            return None
        store = cls._read(folder)
        store._check_same(manifest)
        return store

    @classmethod
    def open(cls, folder: Path) -> "FeatureStore":
        """Open a complete store.

        Raises:
            InputError: no store is there, it is damaged, or its extraction has not ended.
        """
        store = cls._read(folder)
        done = store.rows_done()
        for pooling in store.manifest.poolings:
            if done.get(pooling, 0) < store.manifest.rows:
                raise InputError(
                    f"{folder}: {pooling} has {done.get(pooling, 0):,} of "
                    f"{store.manifest.rows:,} rows; run the same siren extract again to finish it"
                )
        return store

    @classmethod
    def _read(cls, folder: Path) -> "FeatureStore":
        path = folder / STORE_FILE
        try:
            data = path.read_bytes()
            version = msgspec.json.decode(data, type=_Versioned).format_version
            if version != FORMAT_VERSION:
                raise InputError(
                    f"{path}: format version {version}, this release reads {FORMAT_VERSION}; "
                    "extract again, into another folder"
                )
            manifest = msgspec.json.decode(data, type=StoreManifest)
        except FileNotFoundError:
            raise InputError(
                f"{folder}: not a feature store; make one with siren extract"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a valid store: {error}") from None
        return cls(folder, manifest)

    def _check_same(self, manifest: StoreManifest) -> None:
        for field in manifest.__struct_fields__:
            found, expected = getattr(self.manifest, field), getattr(manifest, field)
            if field != "engines" and found != expected:
                raise InputError(
                    f"{self.folder}: holds features for other settings: {field} is {found!r}, "
                    f"asked for {expected!r}; choose another folder, or remove this one"
                )
        self.check_engines(manifest)

    def check_engines(self, manifest: StoreManifest) -> None:
        """See that those that `manifest` says, as far as it says any, have pooled the features of
        this store too.

        Raises:
            InputError: another has, or an earlier release did not say which.
        """
        for pooling in manifest.poolings:
            known = self.manifest.engines.get(pooling)
            if known is None or manifest.engines.get(pooling, known) != known:
                told = "is of another engine than" if known else "does not say whether it is of"
                raise InputError(
                    f"{self.folder}: its {pooling} {told} the one that this release makes of the "
                    "backbone on this machine (fitted weights, of int8 and int4, go by the "
                    "processor too); siren train reads it as it is: to go on, extract all rows "
                    "into another folder, without --reuse, or remove this one"
                )

    def rows_done(self) -> dict[str, int]:
        """Return how many rows are on disk, by pooling.

        Raises:
            InputError: the record is damaged.
        """
        path = self.folder / PROGRESS_FILE
        if not path.exists():
            return {}
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, int])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path}: not a valid record: {error}; remove it, and extract again"
            ) from None

    def record(self, pooling: Pooling, rows: int) -> None:
        """Record that the first `rows` rows, in the order of the sources, are on disk."""
        done = {**self.rows_done(), pooling: rows}
        write_whole(self.folder / PROGRESS_FILE, msgspec.json.encode(done), InputError)

    def array(self, split: str, pooling: Pooling, *, writable: bool = False) -> np.memmap[Any, Any]:
        """Return the pooled neurons of a split, a memory map [rows, layers, channels].

        Raises:
            InputError: its file is damaged.
        """
        manifest = self.manifest
        array: np.memmap[Any, Any] = self._load(
            f"{split}.{pooling}.npy",
            manifest.dtype,
            (manifest.splits[split], manifest.layers, manifest.channels),
            "r+" if writable else "r",
        )
        return array

    def features(self, split: str, pooling: Pooling, target: Target = "harm") -> FeatureSet:
        """Return the rows of a split; for categories, those that are no copies and whose labels are
        known, of the data sets that name any.

        Raises:
            InputError: the store has no such split or pooling, no labels or targets, or prefixes
                where the target is not what follows them, or a file is damaged.
        """
        manifest = self.manifest
        if split not in manifest.splits or pooling not in manifest.poolings:
            raise InputError(
                f"{self.folder}: has no {pooling} of {split!r}; it has "
                f"{', '.join(manifest.poolings)} of {', '.join(manifest.splits)}"
            )
        rows = FeatureSet(
            self.array(split, pooling),
            self._column(split, "labels"),
            self._column(split, "datasets"),
            self._column(split, "collections"),
            self._column(split, "originals"),
            tuple(manifest.datasets),
            tuple(manifest.classes),
            collection_names=tuple(manifest.collections),
        )
        if target == "forecast":
            if not manifest.prefixes:
                raise InputError(
                    f"{self.folder}: its rows are no prefixes; make targets with siren rollouts, "
                    "and extract these with --prefixes"
                )
            return replace(rows, expected_harm=self._column(split, "targets"))
        if manifest.prefixes:
            raise InputError(
                f"{self.folder}: its rows are prefixes, of which --head forecast alone is trained; "
                "for another head extract whole texts, without --prefixes"
            )
        if target != "categories":
            return rows
        if not manifest.labels:
            raise InputError(
                f"{self.folder}: its rows have no labels; extract with --labels NAME,NAME"
            )
        labels = self._column(split, "categories")
        naming = np.unique(rows.datasets[(labels == 1).any(axis=1)])
        kept = known(labels) & np.isin(rows.datasets, naming) & ~rows.is_copy
        return replace(rows, labels=labels, classes=tuple(manifest.labels)).where(kept)

    def texts(self, split: str) -> list[bytes]:
        """Return what `text_digest` says of each row of a split.

        Raises:
            InputError: its file is damaged, or missing.
        """
        digests: list[bytes] = self._column(split, "texts").view("V16").ravel().tolist()
        return digests

    def _column(self, split: str, name: Column) -> NDArray[Any]:
        shape: tuple[int, ...] = (self.manifest.splits[split],)
        if name == "categories":
            shape = *shape, len(self.manifest.labels)
        elif name == "texts":
            shape = *shape, 2
        dtype = {"targets": "float64", "texts": "uint64"}.get(name, "int64")
        column: NDArray[Any] = self._load(f"{split}.{name}.npy", dtype, shape, None)
        return column

    def _load(
        self, name: str, dtype: str, shape: tuple[int, ...], mode: Literal["r+", "r"] | None
    ) -> Any:
        path = self.folder / name
        try:
            array = np.load(path, mmap_mode=mode)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{path}: not readable: {error}; remove {self.folder}, and extract again"
            ) from None
        if array.shape != shape or array.dtype != dtype:
            raise InputError(
                f"{path}: is {array.dtype} {array.shape}, {STORE_FILE} says {dtype} {shape}; "
                f"remove {self.folder}, and extract again"
            )
        return array


def _allocate(path: Path, dtype: DType, shape: tuple[int, ...]) -> None:
    """Make the file of an array, and reserve its space on disk.

    Without that the file would be sparse, and writing to its memory map on a full disk would kill
    the process.
    """
    try:
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        raise InputError(f"{path}: {size:,} bytes do not fit: {error.strerror or error}") from None
