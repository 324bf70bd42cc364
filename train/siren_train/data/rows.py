"""Read labelled text, row by row: jsonl, csv, parquet, or a hub data set.

A source is written [SPLIT=]PATH, or [SPLIT=]hub:NAME[:CONFIG][@PART] for a data set that the
`datasets` library loads, or one split of it. Without SPLIT, a file's rows name their split in a
column, and a hub data set has its own.
"""

import csv
import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

import numpy as np

from siren_runtime.errors import InputError
from siren_runtime.text.rules import JOINER, clean, one_text

HUB_PREFIX = "hub:"
_SPLIT_NAME = r"\w[\w.-]{0,63}"  # files are named for it
_SPLIT_PREFIX = re.compile(f"({_SPLIT_NAME})=(.+)", re.DOTALL)
_HUB = re.compile(r"hub:(?P<name>.+?)(:(?P<config>[^:@/\\]+))?(@(?P<part>[\w.-]+))?", re.DOTALL)
_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
_PARQUET_ROWS = 1024  # rows decoded at once
_LONGEST_FIELD = 2**31 - 1  # of csv, in characters; its own limit is 131,072


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        text: the text's column, or those that are joined, as a prompt and its response are. Empty
            takes `text` where a row has it, else `prompt` and `response`.
        label, split, id, category: by name; a row may lack the last two, or leave them empty.
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
    def hub(self) -> re.Match[str]:
        """The hub data set's `name`, and its `config` and `part`, which may be None.

        Raises:
            InputError: it is not written like one.
        """
        match = _HUB.fullmatch(self.location)
        if match is None:
            raise InputError(f"{self.location}: expected hub:NAME[:CONFIG][@PART]")
        return match

    @property
    def name(self) -> str:
        """The file's name, or the hub data set as it was written."""
        return self.location if self.is_hub else Path(self.location).name

    @property
    def dataset(self) -> str:
        """The name of the data set: the file's without suffix, or the repository's."""
        if self.is_hub:
            return self.hub["name"].rstrip("/").rsplit("/", 1)[-1]
        return Path(self.location).stem

    def overlaps(self, other: "Source") -> bool:
        """Whether both are of the same rows: one file by whatever path, or a hub part's."""
        if self.is_hub != other.is_hub:
            return False
        if not self.is_hub:
            return Path(self.location).samefile(other.location)
        (name, config, part), (name_2, config_2, part_2) = (
            source.hub.group("name", "config", "part") for source in (self, other)
        )
        return (Path(name).resolve(), config) == (Path(name_2).resolve(), config_2) and (
            part == part_2 or part is None or part_2 is None
        )


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
        InputError: no such file, or one of a kind that cannot be read, or not a hub data set.
    """
    match = None if Path(argument).exists() else _SPLIT_PREFIX.fullmatch(argument)
    source = Source(match[2], match[1]) if match else Source(argument)
    if source.is_hub:
        _ = source.hub
    else:
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
        InputError: as `read_rows`; a source is given twice, an id occurs twice in a data set,
            there is no row at all, or a split lacks a class, so that nothing can be learned or
            measured on it.
    """
    for source, other in combinations(sources, 2):
        if source.overlaps(other):
            raise InputError(
                f"{other.location}: has rows that {source.location} gives already; give a file, "
                "or a part of a hub data set, once"
            )
    ids: dict[str, array[int]] = {}  # of each data set: a hash of each row's, 8 bytes
    counts: dict[str, list[int]] = {}
    names: dict[str, dict[str, None]] = {}  # of the sources of each split, in order
    for source in sources:
        for row in read_rows(source, columns):
            if row.id is not None:
                ids.setdefault(row.dataset, array("Q")).append(_hash(row.id))
            counts.setdefault(row.split, [0] * len(columns.classes))[row.label] += 1
            names.setdefault(row.split, {})[source.location] = None
            yield row
    if not counts:
        raise InputError(f"{', '.join(source.location for source in sources)}: no rows")
    for dataset, hashes in ids.items():
        values, occurrences = np.unique(np.array(hashes), return_counts=True)
        repeated = set(values[occurrences > 1].tolist())
        if repeated:
            _refuse_repeated(sources, columns, dataset, repeated)
    for split, by_class in counts.items():
        missing = [name for name, n in zip(columns.classes, by_class, strict=True) if n == 0]
        if missing:
            raise InputError(
                f"{', '.join(names[split])}: the {split} split has {sum(by_class)} rows, none of "
                f"class {', '.join(map(repr, missing))}; every split needs rows of every class"
            )


def _refuse_repeated(
    sources: Sequence[Source], columns: Columns, dataset: str, hashes: set[int]
) -> None:
    """Read the data set again, and name the first two rows of one id, if hashes did not deceive."""
    first_of: dict[str, str] = {}
    for source in sources:
        if source.dataset != dataset:
            continue
        for row in read_rows(source, columns):
            if row.id is None or _hash(row.id) not in hashes:
                continue
            first = first_of.setdefault(row.id, row.origin)
            if first != row.origin:
                raise InputError(
                    f"{row.origin}: id {shorten(row.id)} is already that of {first}; ids must be "
                    "unique within a data set"
                )


def _hash(identity: str) -> int:
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _parse(
    origin: str, source: Source, split: str | None, fields: Mapping[str, Any], columns: Columns
) -> Row:
    split = source.split or split or _string(fields, columns.split, origin)
    if not split:
        raise InputError(f"{origin}: column {columns.split!r} is empty; write SPLIT=PATH instead")
    if not re.fullmatch(_SPLIT_NAME, split):
        raise InputError(
            f"{origin}: column {columns.split!r} is {shorten(split)}; the name of a split is up to "
            "64 letters, digits, _, - and ."
        )
    identity = fields.get(columns.id)
    category = fields.get(columns.category)
    return Row(
        origin=origin,
        dataset=source.dataset,
        split=split,
        text=_text(fields, columns, origin),
        label=_label(fields, columns, origin),
        category="" if category is None else _in_one_line(str(category)),
        id=None if identity in (None, "") or identity != identity else str(identity),
    )


def _text(fields: Mapping[str, Any], columns: Columns, origin: str) -> str:
    try:
        if columns.text:
            parts = [_require(fields, name, origin) for name in columns.text]
            text = JOINER.join(one_text(part, None, None) for part in parts if part)
        elif fields.get("text"):
            text = one_text(fields["text"], None, None)
        else:
            text = one_text(None, fields.get("prompt") or None, fields.get("response") or None)
        return clean(one_text(text or None, None, None))
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
    for index in range(len(columns.classes)):
        if value == index or (isinstance(value, str) and value.strip() == str(index)):
            return index
    raise InputError(
        f"{origin}: column {columns.label!r} is {shorten(value)}; expected one of "
        f"{', '.join(columns.classes)}, or an index from 0 to {len(columns.classes) - 1}"
    )


def _string(fields: Mapping[str, Any], name: str, origin: str) -> str:
    value = _require(fields, name, origin)
    if not isinstance(value, str):
        raise InputError(f"{origin}: column {name!r} is {shorten(value)}; expected a string")
    return value


def _in_one_line(text: str) -> str:
    """Category names go into tables and files, where a lone surrogate cannot."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def _require(fields: Mapping[str, Any], name: str, origin: str) -> Any:
    if name not in fields:
        raise InputError(
            f"{origin}: no column {name!r}; found {', '.join(map(str, fields)) or 'none'}"
        )
    return fields[name]


def read_fields(source: Source) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
    """Yield where a row stands, the split that the container gives it, and its columns.

    Raises:
        InputError: a row is not UTF-8 or not well-formed, or a hub data set cannot be had.
    """
    if source.is_hub:
        yield from _read_hub(source)
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
            text = _decode(line, f"{path}, row {number}")
            try:
                fields = json.loads(text)
            except (ValueError, RecursionError) as error:  # of an endless integer, too
                raise InputError(f"{path}, row {number}: not JSON: {error}") from None
            if not isinstance(fields, dict):
                raise InputError(f"{path}, row {number}: expected a JSON object")
            yield number, fields


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open("rb") as file:
        lines = (
            _decode(line, f"{path}, line {number}") for number, line in enumerate(file, start=1)
        )
        reader = csv.DictReader(lines, strict=True)
        number = 0
        try:
            _check_header(path, reader.fieldnames or [])
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
            _check_header(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for index in range(batch.num_rows):
                    (fields,) = batch.slice(index, 1).to_pylist()
                    number += 1
                    yield number, fields
    except UnicodeDecodeError as error:
        raise _not_utf8(error, f"{path}, row {number + 1}") from None
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path}, after row {number}: not readable parquet: {error}") from None


def _check_header(path: Path, names: Sequence[str]) -> None:
    """Refuse a name that stands twice, for one of its columns would be lost; some have none."""
    for name, occurrences in Counter(names).items():
        if name and occurrences > 1:
            raise InputError(f"{path}: the header names column {name!r} {occurrences} times")


def _read_hub(source: Source) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    origin, hub = source.location, source.hub
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{origin}: hub data sets need the datasets library; pip install datasets"
        ) from None
    try:
        splits = dict(datasets.load_dataset(hub["name"], hub["config"], streaming=True))
    except Exception as error:  # its errors have no base of their own
        raise InputError(f"{origin}: cannot be loaded: {error}") from error
    parts = [hub["part"]] if hub["part"] else list(splits)
    if not splits:
        raise InputError(f"{origin}: has no rows")
    if parts[0] not in splits or (source.split and len(parts) > 1):
        raise InputError(
            f"{origin}: has the splits {', '.join(splits)}; one of them is written "
            f"hub:NAME{':CONFIG' if hub['config'] else ''}@{next(iter(splits))}"
        )
    for part in parts:
        number = 0
        try:
            for number, fields in enumerate(splits[part], start=1):
                yield f"{origin}, {part} row {number}", part, fields
        except Exception as error:
            raise InputError(f"{origin}, {part} after row {number}: {error}") from error


def _decode(line: bytes, origin: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(error, origin) from None


def _not_utf8(error: UnicodeDecodeError, origin: str) -> InputError:
    return InputError(
        f"{origin}: not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"
    )
