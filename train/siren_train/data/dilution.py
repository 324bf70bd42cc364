"""Rows among plain text of other rows: what a mean over tokens makes of harm that stands in it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from siren_runtime.errors import InputError
from siren_runtime.text.tokenizer import Encoded

from .rows import Row

Place = Literal["behind", "middle"]
PLACES: tuple[Place, ...] = get_args(Place)


class Encodes(Protocol):
    """What says of which tokens a text is, and where they stand; a guard's tokenizer does."""

    def encode(self, text: str, *, special: bool) -> Encoded:
        """The tokens of a text, without special ones where `special` is false."""


@dataclass(frozen=True)
class Dilution:
    """Puts rows behind, or in the middle of, `tokens` tokens of safe rows of their data set.

    Of few safe rows one that looks harmful would stand in many of the texts.

    Attributes:
        tokenizer: counts them.
        seed: of the draw, which depends on the row and the length, and not on other rows drawn.
    """

    tokenizer: Encodes
    tokens: int
    place: Place
    seed: int = 0

    def of(self, rows: Sequence[Row], among: Sequence[Row] | None = None) -> list[Row]:
        """Each row with plain text around it; its label is kept, its id is not.

        Args:
            among: the rows whose safe ones the plain text is taken of; None is `rows`.

        Raises:
            InputError: a data set has fewer than two different safe texts.
        """
        safe: dict[str, list[str]] = {}
        for row in rows if among is None else among:
            if row.label != 1:
                safe.setdefault(row.dataset, []).append(row.text)
        for dataset in {row.dataset for row in rows}:
            if len(set(safe.get(dataset, ()))) < 2:
                raise InputError(
                    f"{dataset}: rows are put among safe rows of their data set, and it has fewer "
                    "than two"
                )
        return [self._diluted(row, safe[row.dataset]) for row in rows]

    def _diluted(self, row: Row, safe: Sequence[str]) -> Row:
        draw = random.Random(f"{self.seed}/{self.tokens}/{self.place}/{row.dataset}/{row.text}")
        before = self.tokens if self.place == "behind" else self.tokens // 2
        lead = self._plain(row, safe, draw, before) + "\n"
        tail = ""
        if before < self.tokens:
            tail = "\n" + self._plain(row, safe, draw, self.tokens - before)
        turns = [*row.turns]
        if turns:
            turns[0], turns[-1] = lead + turns[0], turns[-1] + tail
        text = lead + row.text + tail
        return replace(row, text=text, turns=tuple(turns), id=None, is_copy=True)

    def _plain(self, row: Row, safe: Sequence[str], draw: random.Random, tokens: int) -> str:
        """Safe rows one after another, cut behind so many tokens."""
        parts: list[str] = []
        while tokens > 0:
            text = draw.choice(safe)
            if text == row.text:
                continue
            encoded = self.tokenizer.encode(text, special=False)
            kept = encoded.ids[:tokens]
            tokens -= max(len(kept), 1)
            whole = len(kept) == len(encoded.ids)
            parts.append(text if whole else text[: encoded.offsets[len(kept) - 1][1]])
        return "\n".join(parts)


def checked_lengths(lengths: str) -> list[int]:
    """Read lengths in tokens, such as 100,300,1000.

    Raises:
        InputError: it is not different whole numbers from 1.
    """
    try:
        numbers = [int(length) for length in lengths.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise InputError(
            f"lengths are different whole numbers of tokens, such as 100,300, found {lengths!r}"
        )
    return sorted(numbers)
