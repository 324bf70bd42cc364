"""Read labelled text, row by row: jsonl, csv, parquet, or a hub data set.

A source is written [SPLIT=]PATH, or [SPLIT=]hub:NAME for a data set that the `datasets` library
loads. Without SPLIT, a file's rows name their split in a column, and a hub data set has its own.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siren_runtime.errors import InputError
from siren_runtime.text import JOINER, choose, clean

HUB_PREFIX = "hub:"
_SPLIT_PREFIX = re.compile("([A-Za-z0-9_-]+)=(.+)", re.DOTALL)
_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
_PARQUET_ROWS = 1024  # rows decoded at once


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        text: the text's column, or those that are joined, as a prompt and its response are. Empty
            takes `text` where a row has it, else `prompt` and `response`.
        label, split, id, category: by name; a row may lack the last two.
        classes: the names of the classes. A label is one of them, or its index.
    """

    text: tuple[str, ...] = ()
    label: str = "label"
    split: str = "split"
    id: str = "id"
    category: str = "category"
    classes: tuple[str, ...] = ("safe", "harmful")


@dataclass(frozen=True)
class Source:
    """Where rows come from: a file or a hub data set, and the split they all belong to, if any."""

    location: str
    split: str | None = None

    @property
    def is_hub(self) -> bool:
        return self.location.startswith(HUB_PREFIX)

    @property
    def name(self) -> str:
        """The file's name, or the hub data set as it was written."""
        return self.location if self.is_hub else Path(self.location).name

    @property
    def dataset(self) -> str:
        """The name of the data set: the file's without suffix, or the repository's."""
        if self.is_hub:
            return self.location.removeprefix(HUB_PREFIX).rstrip("/").rsplit("/", 1)[-1]
        return Path(self.location).stem


@dataclass(frozen=True)
class Row:
    """One labelled text. `label` indexes the classes; `origin` names the file and row in errors.

    `is_copy` marks a changed copy of the last row before it that is none.
    """

    origin: str
    dataset: str
    split: str
    text: str
    label: int
    category: str
    id: str | None
    is_copy: bool = False


def parse_source(argument: str) -> Source:
    """Read [SPLIT=]PATH; a path that exists as it is written is taken as that.

    Raises:
        InputError: no such file, or a file of a kind that cannot be read.
    """
    match = None if Path(argument).exists() else _SPLIT_PREFIX.fullmatch(argument)
    source = Source(match[2], match[1]) if match else Source(argument)
    if not source.is_hub:
        path = Path(source.location)
        if not path.is_file():
            raise InputError(f"{path}: no such file; a hub data set is written hub:NAME")
        if path.suffix not in _SUFFIXES:
            raise InputError(f"{path}: expected one of {', '.join(_SUFFIXES)}")
    return source


def read_rows(source: Source, columns: Columns) -> Iterator[Row]:
    """Yield the rows of `source` in order; its memory does not grow with the rows.

    Raises:
        InputError: a row is not UTF-8 or not well-formed, lacks a column, has no text that can be
            scored, or a label that is not a class.
    """
    for origin, split, fields in read_fields(source):
        yield _parse(origin, source, split, fields, columns)


def read_all(sources: Sequence[Source], columns: Columns) -> Iterator[Row]:
    """Yield the rows of every source; at the end every split must have held every class.

    Raises:
        InputError: as `read_rows`; an id occurs twice in a data set, there is no row at all, or a
            split lacks a class, so that nothing can be learned or measured on it.
    """
    first_of: dict[tuple[str, str], str] = {}
    counts: dict[str, list[int]] = {}
    names: dict[str, dict[str, None]] = {}  # of the sources of each split, in order
    for source in sources:
        for row in read_rows(source, columns):
            if row.id is not None:
                first = first_of.setdefault((row.dataset, row.id), row.origin)
                if first != row.origin:
                    raise InputError(
                        f"{row.origin}: id {row.id!r} is already that of {first}; ids must be "
                        "unique within a data set"
                    )
            counts.setdefault(row.split, [0] * len(columns.classes))[row.label] += 1
            names.setdefault(row.split, {})[source.location] = None
            yield row
    if not counts:
        raise InputError(f"{', '.join(source.location for source in sources)}: no rows")
    for split, by_class in counts.items():
        missing = [name for name, n in zip(columns.classes, by_class, strict=True) if n == 0]
        if missing:
            raise InputError(
                f"{', '.join(names[split])}: the {split} split has {sum(by_class)} rows, none of "
                f"class {', '.join(map(repr, missing))}; every split needs rows of every class"
            )


def _parse(
    origin: str, source: Source, split: str | None, fields: Mapping[str, Any], columns: Columns
) -> Row:
    split = source.split or split or _string(fields, columns.split, origin)
    if not split:
        raise InputError(f"{origin}: column {columns.split!r} is empty; write SPLIT=PATH instead")
    identity = fields.get(columns.id)
    category = fields.get(columns.category)
    return Row(
        origin=origin,
        dataset=source.dataset,
        split=split,
        text=_text(fields, columns, origin),
        label=_label(fields, columns, origin),
        category="" if category is None else str(category),
        id=None if identity is None else str(identity),
    )


def _text(fields: Mapping[str, Any], columns: Columns, origin: str) -> str:
    try:
        if not columns.text:
            text, prompt, response = (fields.get(name) for name in ("text", "prompt", "response"))
            return clean(choose(text or None, prompt or None, response or None))
        for name in columns.text:
            _require(fields, name, origin)
        parts = [str(fields[name]) for name in columns.text if fields[name] not in (None, "")]
        return clean(JOINER.join(parts))
    except InputError as error:
        if str(error).startswith(origin):
            raise
        raise InputError(
            f"{origin}: {error} (columns found: {', '.join(map(str, fields))})"
        ) from None


def _label(fields: Mapping[str, Any], columns: Columns, origin: str) -> int:
    value = _require(fields, columns.label, origin)
    if isinstance(value, str) and value in columns.classes:
        return columns.classes.index(value)
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and 0 <= value < len(columns.classes):
        return int(value)
    raise InputError(
        f"{origin}: column {columns.label!r} is {value!r}; expected one of "
        f"{', '.join(columns.classes)}, or an index from 0 to {len(columns.classes) - 1}"
    )


def _string(fields: Mapping[str, Any], name: str, origin: str) -> str:
    value = _require(fields, name, origin)
    if not isinstance(value, str):
        raise InputError(f"{origin}: column {name!r} is {value!r}; expected a string")
    return value


def _require(fields: Mapping[str, Any], name: str, origin: str) -> Any:
    if name not in fields:
        raise InputError(
            f"{origin}: no column {name!r}; found {', '.join(map(str, fields)) or 'none'}"
        )
    return fields[name]


def read_fields(source: Source) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
    """Yield where a row stands, the split that the container gives it, and its columns.

    Raises:
        InputError: a row is not UTF-8 or not well-formed.
    """
    if source.is_hub:
        yield from _read_hub(source.location.removeprefix(HUB_PREFIX))
        return
    path = Path(source.location)
    reader = {".csv": _read_csv, ".parquet": _read_parquet}.get(path.suffix, _read_jsonl)
    for number, fields in reader(path):
        yield f"{path}, row {number}", None, fields


def _read_jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                fields = json.loads(_decode(line, f"{path}, row {number}"))
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{path}, row {number}: not JSON: {error}") from None
            if not isinstance(fields, dict):
                raise InputError(f"{path}, row {number}: expected a JSON object")
            yield number, fields


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open("rb") as file:
        lines = (
            _decode(line, f"{path}, line {number}") for number, line in enumerate(file, start=1)
        )
        reader = csv.DictReader(lines, strict=True)
        number = 0
        try:
            for number, fields in enumerate(reader, start=1):
                if None in fields or None in fields.values():
                    raise InputError(
                        f"{path}, row {number}: has another number of columns than the header "
                        f"({', '.join(reader.fieldnames or [])})"
                    )
                yield number, fields
        except csv.Error as error:
            raise InputError(f"{path}, row {number + 1}: not CSV: {error}") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(
            f"{path}: parquet files need pyarrow; pip install 'siren-edge[train]'"
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield number, fields
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path}, after row {number}: not readable parquet: {error}") from None


def _read_hub(name: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"hub:{name}: hub data sets need the datasets library; pip install datasets"
        ) from None
    try:
        splits = datasets.load_dataset(name, streaming=True)
    except Exception as error:  # its errors have no base of their own
        raise InputError(f"hub:{name}: cannot be loaded: {error}") from error
    for split, rows in splits.items():
        for number, fields in enumerate(rows, start=1):
            yield f"hub:{name}, {split} row {number}", str(split), fields


def _decode(line: bytes, origin: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{origin}: not UTF-8: byte {error.start} is 0x{line[error.start]:02x}"
        ) from None
