"""Prefixes of labelled responses, as they stand while a response is written."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from siren_train.data.copies import HARMFUL
from siren_train.data.rows import Row

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Prefix:
    """A prompt and the beginning of a response to it; either may be empty, not both.

    Attributes:
        split: of the rows that begin with it.
        labels: of each of these rows, 1 where the whole response is harmful, else 0.
    """

    split: str
    prompt: str
    text: str
    labels: tuple[int, ...]


def prefixes_of(rows: Iterable[Row], most: int) -> list[Prefix]:
    """Return the different prefixes of all rows, in the order in which they occur.

    A row that is one text counts as a response without a prompt.

    Args:
        most: prefixes of one response, 2 at least; they end behind words, and the first is empty,
            the last the whole response.
    """
    found: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        prompt, response = row.turns or ("", row.text)
        for text in beginnings(response, most):
            if prompt or text:
                labels = found.setdefault((row.split, prompt, text), [])
                labels.append(int(row.label == HARMFUL))
    return [Prefix(*key, tuple(labels)) for key, labels in found.items()]


def beginnings(response: str, most: int) -> Iterator[str]:
    """Yield up to `most` beginnings of a response with as many words between each two."""
    ends = [0, *(match.end() for match in _WORD.finditer(response))]
    for place in np.linspace(0, len(ends) - 1, min(most, len(ends))).round().astype(int).tolist():
        yield response[: ends[place]]
