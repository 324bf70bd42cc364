"""The columns of every row of a source, from jsonl, csv, parquet or the hub alike."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from siren_runtime.errors import InputError, install_hint
from siren_runtime.text.keys import once

from .sources import Source

_PARQUET_ROWS = 1024  # rows decoded at once
_LONGEST_FIELD = 2**31 - 1  # of csv, in characters; Python's own limit is 131,072


def read_fields(source: Source) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
    """Yield of each row where it stands, the split it is loaded from, and its columns by name.

    Where a row stands is text for error messages. The split is None but for hub data sets. The
    columns are what the source adapts them to, if it does.

    Raises:
        InputError: a row is not UTF-8 or not well-formed, or cannot be adapted, or a hub data set
            cannot be loaded.
    """
    for origin, split, fields in _read(source):
        if source.adapt is None:
            yield origin, split, fields
            continue
        try:
            adapted = source.adapt(fields)
        except InputError as error:
            raise InputError(f"{origin}: {error}") from None
        if adapted is not None:
            yield origin, split, adapted


def _read(source: Source) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
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
                fields = json.loads(text, object_pairs_hook=once)
            except InputError as error:
                raise InputError(f"{path}, row {number}: {error}") from None
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
        raise InputError(f"{path}: parquet files need pyarrow; {install_hint('train')}") from None
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
    """Refuse a name that stands twice, because one of its two columns would be lost.

    Columns without a name may be several: they are never asked for.
    """
    for name, occurrences in Counter(names).items():
        if name and occurrences > 1:
            raise InputError(f"{path}: the header names column {name!r} {occurrences} times")


def _read_hub(source: Source) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    origin, hub = source.location, source.hub
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise InputError(
            f"{origin}: hub data sets need the datasets library; pip install datasets"
        ) from None
    try:
        splits = _hub_splits(source)
    except Exception as error:  # its errors have no base of their own
        raise InputError(f"{origin}: cannot be loaded: {_explain(error, hub['name'])}") from error
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


def _hub_splits(source: Source) -> dict[str, Iterable[Mapping[str, Any]]]:
    """Return the rows of each split of a hub data set. They are streamed.

    But of a benchmark, which is asked for again and again, the part is kept in the hub's cache, and
    it alone: its splits need not be of one schema.
    """
    import datasets

    hub = source.hub
    if source.adapt is None:
        return dict(datasets.load_dataset(hub["name"], hub["config"], streaming=True))
    builder = datasets.load_dataset_builder(hub["name"], hub["config"])
    files: dict[str, Any] = {
        str(split): [*paths] for split, paths in builder.config.data_files.items()
    }
    if hub["part"] in files:
        files[hub["part"]] = datasets.load_dataset(
            type(builder).__module__.rsplit(".", 1)[-1],  # csv, json, parquet
            data_files=files[hub["part"]],
            split="train",  # what it calls files without a name
            streaming=Path(hub["name"]).is_dir(),
        )
    return files


def _explain(error: Exception, name: str) -> str:
    from huggingface_hub import constants, errors

    seen: BaseException | None = error
    while seen is not None:
        # datasets may drop the hub client's error and keep its words.
        if isinstance(seen, errors.GatedRepoError) or "gated dataset" in str(seen):
            return (
                "the data set is gated; accept its terms at "
                f"{constants.ENDPOINT}/datasets/{name}, then set HF_TOKEN to a token of that "
                "account, or log in with `hf auth login`"
            )
        seen = seen.__cause__ or seen.__context__
    return str(error)


def _decode(line: bytes, origin: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(error, origin) from None


def _not_utf8(error: UnicodeDecodeError, origin: str) -> InputError:
    return InputError(
        f"{origin}: not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"
    )
