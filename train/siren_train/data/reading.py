"""The rows that a feature store is of: those asked for, in one order, with their copies."""

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from siren_runtime.errors import InputError

from .copies import TRAIN, Copies, SafeTexts, safe_texts, with_copies
from .rows import Columns, Row, read_all, read_rows, text_hash
from .sources import Source
from .streams import StreamRow

AnyRow = TypeVar("AnyRow", Row, StreamRow)


@dataclass(frozen=True)
class MostRows:
    """How many train rows of a data set are taken at most, and a third as many of other splits.

    Attributes:
        each: of a data set that `of` does not name; None is all.
        of: by the data set's name.
    """

    each: int | None = None
    of: Mapping[str, int] = field(default_factory=dict)

    def most(self, dataset: str, split: str) -> int | None:
        """How many rows of a data set's split are taken at most; None is all."""
        rows = self.of.get(dataset, self.each)
        return rows if rows is None or split == TRAIN else -(-rows // 3)


ALL_ROWS = MostRows()
LEFT_OUT: Final = "{:,} rows are left out, since their text stands in a split that measures it too"
_FITTED: Final = (TRAIN, "validation")  # heads are fitted on rows of both; the later measures too


class Reading:
    """Rows that are the same in every pass.

    A train row whose text stands in another split too, in letters of any case and in any Unicode
    form, with any white space, is left out: what is measured on the other would be known. So is a
    validation row whose text stands in a third split, since heads are fitted on it as well.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        columns: Columns,
        *,
        splits: Collection[str] = (),
        most_rows: MostRows = ALL_ROWS,
        copies: Copies | None = None,
    ) -> None:
        """Read all rows and check them.

        Args:
            splits: those whose rows are taken; none given is all.
            most_rows: of each data set, take no more.
            copies: what copies follow train rows.

        Raises:
            InputError: as `read_all`; a split has no rows; or copies, or a number of rows, are
                asked for of a data set that is not there.
        """
        self.sources, self.columns = sources, columns
        self._splits, self._copies = splits, copies
        self._taken: NDArray[np.bool_] | None = None  # of the rows of the splits
        elsewhere = _measured_elsewhere(read_all(sources, columns), splits)
        self._left_out = elsewhere  # of all rows
        if most_rows != ALL_ROWS:
            self._taken = at_most(self._of_splits(), most_rows)
        found = {(row.split, row.dataset) for row in self._originals()}
        _check_names("no row is of split", splits, {split for split, _ in found})
        datasets = {name for _, name in found}
        _check_names("copies are asked for of", copies.datasets if copies else (), datasets)
        _check_names("rows are counted of", most_rows.of, datasets)
        self._safe = safe_texts(self._originals(), copies) if copies else SafeTexts()

    @property
    def left_out(self) -> int:
        """How many rows are left out since their text stands in a split that measures it too."""
        return int(self._left_out.sum())

    def rows(self) -> Iterator[Row]:
        """Every row, followed by its copies."""
        return with_copies(self._originals(), self._copies, self._safe)

    def _originals(self) -> Iterator[Row]:
        for place, row in enumerate(self._of_splits()):
            if self._taken is None or self._taken[place]:
                yield row

    def _of_splits(self) -> Iterator[Row]:
        rows = (row for source in self.sources for row in read_rows(source, self.columns))
        for place, row in enumerate(rows):
            if not self._left_out[place] and (not self._splits or row.split in self._splits):
                yield row


def sampled(rows: Iterable[AnyRow], most: int | None) -> list[AnyRow]:
    """At most so many rows of each data set, the first of each class in turn; None is all."""
    kept: dict[tuple[str, int], list[AnyRow]] = {}
    for row in rows:
        of_class = kept.setdefault((row.dataset, row.label), [])
        if most is None or len(of_class) < most:
            of_class.append(row)
    if most is None:
        return [row for of_class in kept.values() for row in of_class]
    classes = Counter(dataset for dataset, _ in kept)
    return [
        row
        for (dataset, _), of_class in kept.items()
        for row in of_class[: max(most // classes[dataset], 1)]
    ]


def at_most(rows: Iterable[Row], most_rows: MostRows) -> NDArray[np.bool_]:
    """Choose as many rows of each data set as are taken at most: bool [rows], which are.

    The choice is by a hash of the text, so it does not depend on the order of rows, but for those
    of one text, of which the last are taken.
    """
    parts: dict[tuple[str, str], int] = {}
    of, texts = array("q"), array("Q")
    for row in rows:
        of.append(parts.setdefault((row.dataset, row.split), len(parts)))
        texts.append(text_hash(row.text))
    taken = np.zeros(len(of), np.bool_)
    for (dataset, split), number in parts.items():
        places = np.flatnonzero(np.asarray(of) == number)
        by_text = places[np.lexsort((-places, np.asarray(texts)[places]))]
        taken[by_text[: most_rows.most(dataset, split)]] = True
    return taken


def _check_names(what: str, names: Iterable[str], found: Collection[str]) -> None:
    for name in names:
        if name not in found:
            raise InputError(f"{what} {name!r}; there are {', '.join(sorted(found))}")


def _measured_elsewhere(rows: Iterable[Row], splits: Collection[str]) -> NDArray[np.bool_]:
    """Which are train rows whose text stands in another split too, or validation rows whose text
    stands in a third, as far as they are of `splits`: bool [rows].

    Texts are compared by their compatibility form (NFKC), in which an accent is of its letter.
    """
    texts, ranks, fitted = array("Q"), bytearray(), bytearray()
    for row in rows:
        rank = _FITTED.index(row.split) if row.split in _FITTED else len(_FITTED)
        texts.append(text_hash(" ".join(normalize("NFKC", row.text).casefold().split())))
        ranks.append(rank if row.text else 0)  # without text it says nothing
        asked = not splits or row.split in splits
        fitted.append(bool(row.text) and rank < len(_FITTED) and asked)
    _, text_of = np.unique(np.asarray(texts), return_inverse=True)
    rank_of = np.frombuffer(ranks, np.uint8)
    highest = np.zeros(len(rank_of), np.uint8)  # of each text; there are no more than rows
    np.maximum.at(highest, text_of, rank_of)
    elsewhere: NDArray[np.bool_] = np.frombuffer(fitted, np.bool_) & (highest[text_of] > rank_of)
    return elsewhere
