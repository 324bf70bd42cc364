"""Harmless sentences around the rows that a head is trained on, so that it learns to ignore them.

A mean over tokens mixes a request with everything that stands around it, and labelled requests
mostly stand alone. A head that is trained on these alone goes wrong as soon as somebody says good
morning first.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec

from siren_runtime.errors import InputError
from siren_runtime.text.rules import clean

from .rows import Row

TRAIN = "train"
# How many sentences stand before and after a text: each entry is drawn with the same chance.
_BEFORE, _AFTER = (0, 1, 2, 3, 4), (0, 0, 1, 2, 3)


class Wrapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to wrap, and in what.

    Attributes:
        copies: how many wrapped copies each train row gets, by the name of its data set.
        seed: of the draw of sentences.
        before, after: sentences that are harmless around any text.
    """

    copies: dict[str, Annotated[int, msgspec.Meta(ge=0)]]
    seed: int
    before: list[str]
    after: list[str]


def read_wrapping(path: Path) -> Wrapping:
    """Read a `Wrapping` from a JSON file of its fields.

    Raises:
        InputError: the file is missing or is not that, or has too few sentences.
    """
    try:
        wrapping = msgspec.json.decode(path.read_bytes(), type=Wrapping)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a wrapping: {error}") from None
    if len(wrapping.before) < max(_BEFORE) or len(wrapping.after) < max(_AFTER):
        raise InputError(
            f"{path}: has {len(wrapping.before)} sentences to put before and "
            f"{len(wrapping.after)} to put after; at least {max(_BEFORE)} and {max(_AFTER)} are "
            "needed"
        )
    return wrapping


def digest(wrapping: Wrapping) -> str:
    """Return the SHA-256 of a wrapping's contents."""
    return hashlib.sha256(msgspec.json.encode(wrapping)).hexdigest()


def wrap_rows(rows: Iterable[Row], wrapping: Wrapping | None) -> Iterator[Row]:
    """Yield `rows`, each followed by its wrapped copies, which have its label and no id.

    What a copy is wrapped in depends on the seed and on the row, not on other rows.
    """
    for row in rows:
        yield row
        if wrapping and row.split == TRAIN:
            for copy in range(wrapping.copies.get(row.dataset, 0)):
                yield replace(row, text=_wrap(row, copy, wrapping), id=None, turns=(), is_copy=True)


def _wrap(row: Row, copy: int, wrapping: Wrapping) -> str:
    draw = random.Random(f"{wrapping.seed}/{row.dataset}/{copy}/{row.text}")
    before = draw.sample(wrapping.before, draw.choice(_BEFORE))
    after = draw.sample(wrapping.after, draw.choice(_AFTER) if before else max(_AFTER))
    return clean(" ".join([*before, row.text, *after]))
