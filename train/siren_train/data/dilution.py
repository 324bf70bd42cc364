"""Rows among plain text of other rows: what a mean over tokens makes of harm that stands in it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from siren_runtime.errors import InputError
from siren_runtime.text.tokenizer import Tokenizer

from .rows import Row

Place = Literal["behind", "middle"]
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True)
class Dilution:
    """Puts rows behind, or in the middle of, `tokens` tokens of safe rows of their data set.

    Of few safe rows one that looks harmful would stand in many of the texts.

    Attributes:
        tokenizer: counts them.
        seed: of the draw, which depends on the row and the length, and not on other rows drawn.
    """

    tokenizer: Tokenizer
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
        parts = [self._plain(row, safe, draw, before), row.text]
        if before < self.tokens:
            parts.append(self._plain(row, safe, draw, self.tokens - before))
        return replace(row, text="\n".join(parts), id=None, is_copy=True)

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
