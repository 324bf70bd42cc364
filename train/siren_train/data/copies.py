"""Changed copies of the rows that a head is trained on, so that it learns what does not matter.

A mean over tokens mixes a request with everything that stands around it, and labelled requests
mostly stand alone. A head that is trained on these alone goes wrong as soon as somebody says good
morning first, and misses harm in a long friendly text.
"""

import hashlib
import heapq
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from siren_runtime.errors import InputError
from siren_runtime.text.rules import clean

from .disguises import KINDS, disguised
from .rows import Row

TRAIN = "train"
HARMFUL = 1
# How many sentences stand before and after a text: each entry is drawn with the same chance.
_BEFORE, _AFTER = (0, 1, 2, 3, 4), (0, 0, 1, 2, 3)
_AROUND = (10, 120)  # words of other rows around a diluted one
_SPAN = (12, 90)  # words of a span
_LEAD = (40, 160)  # words of other rows that a copy stands behind
_LEAD_CHARACTERS = 1_000  # of them at most, in languages without white space between words
_OF_LEAD = (1, 30)  # words of them that count too
_POOL = 4_000  # texts of a data set of which other rows' copies take their words

Count = Annotated[int, msgspec.Meta(ge=0)]


class Copies(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which copies train rows get, by the name of their data set, and what these are made of.

    Attributes:
        wrapped: how many have harmless sentences around them.
        seed: of every draw.
        before, after: sentences that are harmless around any text.
        diluted: how many stand behind, before or amid 10 to 120 words of safe train rows of any
            of these data sets. They keep their label.
        spans: how many spans of 12 to 90 words are cut out of each safe row that has more. Of a
            harmful row nobody knows which of its spans are harmful.
        capitals: how many are in capital letters, for tokenizers that know letters by their case:
            the row alone first, then with harmless sentences around it.
        disguised: how many have letters that are swapped, left out, masked, spelled apart or put
            as digits, or words that are run together or strewn with signs (`disguises`).
        behind: how many stand behind 40 to 160 words of safe train rows, of their own data set or
            another of these, and are pooled as a span of such a text is: without those words, or
            with the last few. Some safe ones with all: many safe texts are a safe text. Of a safe
            row of more than 90 words it is a span.
    """

    seed: int
    before: list[str] = []
    after: list[str] = []
    wrapped: dict[str, Count] = {}
    diluted: dict[str, Count] = {}
    spans: dict[str, Count] = {}
    capitals: dict[str, Count] = {}
    disguised: dict[str, Count] = {}
    behind: dict[str, Count] = {}

    @property
    def datasets(self) -> set[str]:
        """Names of the data sets that get any."""
        kinds = self.wrapped, self.diluted, self.spans, self.capitals, self.disguised, self.behind
        return {name for kind in kinds for name in kind}


@dataclass(frozen=True)
class SafeTexts:
    """Texts of safe train rows, which stand around copies of others.

    Attributes:
        any_of: those of all data sets that are diluted.
        of: by the name of each data set that has copies behind others, where it has two or more.
    """

    any_of: Sequence[str] = ()
    of: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_copies(path: Path, *more: Path) -> Copies:
    """Read `Copies` from a JSON file of its fields.

    Args:
        more: further files; a field that they have replaces that of the files before.

    Raises:
        InputError: a file is missing or is not that, or there are too few sentences.
    """
    fields: dict[str, Any] = {}
    copies = _joined(fields, path)
    for file in more:
        copies = _joined(fields, file)
    wraps = any(copies.wrapped.values()) or any(n > 1 for n in copies.capitals.values())
    if wraps and (len(copies.before) < max(_BEFORE) or len(copies.after) < max(_AFTER)):
        raise InputError(
            f"{path}: has {len(copies.before)} sentences to put before and "
            f"{len(copies.after)} to put after; at least {max(_BEFORE)} and {max(_AFTER)} are "
            "needed"
        )
    return copies


def _joined(fields: dict[str, Any], file: Path) -> Copies:
    """Add a file's fields to those before."""
    try:
        fields |= msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        return msgspec.convert(fields, Copies)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: does not say which copies to make: {error}") from None


def digest(copies: Copies) -> str:
    """Return the SHA-256 of what copies are made of."""
    return hashlib.sha256(msgspec.json.encode(copies)).hexdigest()


def safe_texts(rows: Iterable[Row], copies: Copies) -> SafeTexts:
    """Return texts of safe train rows to put around others, at most 4,000 of a data set and of all.

    Which those are depends on the seed and the texts, not on the order of rows.
    """
    kept: dict[str, list[tuple[float, str]]] = {}  # of each data set, the latest drawn first
    for row in rows:
        if row.split != TRAIN or row.label == HARMFUL or not row.text.split():
            continue
        if copies.diluted.get(row.dataset) or copies.behind.get(row.dataset):
            heap = kept.setdefault(row.dataset, [])
            heapq.heappush(heap, (-_draw(copies, row.text).random(), row.text))
            if len(heap) > _POOL:
                heapq.heappop(heap)
    diluted = [one for name, heap in kept.items() if copies.diluted.get(name) for one in heap]
    of = {
        name: sorted({text for _, text in heap})
        for name, heap in kept.items()
        if copies.behind.get(name)
    }
    return SafeTexts(
        sorted({text for _, text in heapq.nlargest(_POOL, diluted)}),
        {name: texts for name, texts in of.items() if len(texts) > 1},
    )


def with_copies(rows: Iterable[Row], copies: Copies | None, safe: SafeTexts) -> Iterator[Row]:
    """Yield `rows`, each followed by its copies, which have its label and no id.

    What a copy becomes depends on the seed, the row and `safe`, not on other rows.

    Args:
        safe: what `safe_texts` returned; unused if nothing stands around rows.

    Raises:
        InputError: rows are to stand among or behind others, and `safe` has fewer than two texts.
    """
    if copies and any(copies.diluted.values()) and len(safe.any_of) < 2:
        raise InputError("rows are diluted with safe train rows, and there are fewer than two")
    if copies and any(copies.behind.values()) and not safe.of:
        raise InputError(
            "rows are put behind safe train rows of a data set, and none has two different ones"
        )
    for row in rows:
        yield row
        if copies and row.split == TRAIN:
            for text in _texts(row, copies, safe.any_of):
                yield replace(row, text=text, id=None, turns=(), is_copy=True)
            for number in range(copies.behind.get(row.dataset, 0)):
                draw = _draw(copies, "behind", row.dataset, number, row.text)
                text, skipped = _behind(row, draw, safe.of)
                yield replace(row, text=text, skipped=skipped, id=None, turns=(), is_copy=True)


def _texts(row: Row, copies: Copies, safe: Sequence[str]) -> Iterator[str]:
    for number in range(copies.wrapped.get(row.dataset, 0)):
        yield _wrapped(row.text, _draw(copies, row.dataset, number, row.text), copies)
    for number in range(copies.diluted.get(row.dataset, 0)):
        yield _diluted(row.text, _draw(copies, "diluted", row.dataset, number, row.text), safe)
    for number in range(copies.capitals.get(row.dataset, 0)):
        draw = _draw(copies, "capitals", row.dataset, number, row.text)
        yield clean((_wrapped(row.text, draw, copies) if number else row.text).upper())
    for number in range(copies.disguised.get(row.dataset, 0)):
        draw = _draw(copies, "disguised", row.dataset, number, row.text)
        yield clean(disguised(row.text, draw.choice(KINDS), draw))
    words = row.text.split()
    if row.label != HARMFUL and len(words) > _SPAN[0]:
        for number in range(copies.spans.get(row.dataset, 0)):
            yield _span(words, _draw(copies, "span", row.dataset, number, row.text))


def _draw(copies: Copies, *of: object) -> random.Random:
    return random.Random("/".join(map(str, (copies.seed, *of))))


def _wrapped(text: str, draw: random.Random, copies: Copies) -> str:
    before = draw.sample(copies.before, draw.choice(_BEFORE))
    after = draw.sample(copies.after, draw.choice(_AFTER) if before else max(_AFTER))
    return clean(" ".join([*before, text, *after]))


def _diluted(text: str, draw: random.Random, safe: Sequence[str]) -> str:
    words = draw.randint(*_AROUND)
    before = draw.choice((0, words, round(words * draw.random())))
    joiner = draw.choice((" ", "\n"))
    parts = [_plain(text, before, draw, safe), text, _plain(text, words - before, draw, safe)]
    return clean(joiner.join(part for part in parts if part))


def _behind(row: Row, draw: random.Random, safe: Mapping[str, Sequence[str]]) -> tuple[str, int]:
    """A row behind safe texts, and how many characters of it do not count."""
    text, words = row.text, row.text.split()
    if row.label != HARMFUL and len(words) > _SPAN[1]:
        text = _span(words, draw)
    own = row.dataset in safe and draw.random() < 1 / 2
    dataset = row.dataset if own else draw.choice(sorted(safe))
    lead = _plain(row.text, draw.randint(*_LEAD), draw, safe[dataset])
    before = lead[-_LEAD_CHARACTERS:].split()
    few = min(draw.randint(*_OF_LEAD), len(before) - 1)  # fewer than all, which are one word maybe
    counted = draw.choice((0, few, 0 if row.label == HARMFUL else len(before)))
    skipped = before[: len(before) - counted]
    whole = draw.choice((" ", "\n")).join((" ".join(before), text))
    return clean(whole), len(" ".join([*skipped, ""]))


def _plain(text: str, words: int, draw: random.Random, safe: Sequence[str]) -> str:
    """So many words of safe texts, one text after another."""
    found: list[str] = []
    while len(found) < words:
        other = draw.choice(safe)
        if other != text:
            found += other.split()
    return " ".join(found[:words])


def _span(words: Sequence[str], draw: random.Random) -> str:
    length = draw.randint(_SPAN[0], min(_SPAN[1], len(words) - 1))
    start = draw.randint(0, len(words) - length)
    return clean(" ".join(words[start : start + length]))
