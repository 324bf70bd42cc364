"""Labelled rows, each checked by itself, and all of them together."""

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations
from reprlib import repr as shorten

import numpy as np

from siren_runtime.errors import InputError
from siren_runtime.scoring.call import Text
from siren_runtime.text.keys import once
from siren_runtime.text.passage import check_size
from siren_runtime.text.reading import DEFAULT_MAX_BYTES
from siren_runtime.text.rules import JOINER, clean, one_text
from siren_runtime.text.trajectory import Trajectory, chat_messages, trajectory_of

from .fields import (
    Fields,
    name_in,
    names_in,
    required,
    required_string,
    text_beside,
    warn_of_lone_responses,
)
from .readers import read_fields
from .sources import SPLIT_NAME, Source

SEPARATOR = "+"  # between the labels that a category names
_TURNS = ("prompt", "response")
_PREFIX_TURNS = ("prompt", "prefix")  # of what siren rollouts writes
_BYTES_A_TOKEN = 4  # of English, and not far from that elsewhere


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        text: the column of the text, or several whose texts are joined by newlines, such as a
            prompt's and its response's. Where it is empty, the text of a row is its `text` column;
            where that is not there or blank, its `prompt` and `response`, if it has either.
        label: the column of the label, which every row needs.
        split: the column of the split, which a row needs where its source names none.
        id, category, source: columns that a row may lack or leave empty. A category may be a list
            of names.
        classes: the names of the classes, by index. A label is one of them, or its index.
        trajectories: rows have `messages` and `tools`, what an agent did, in place of text.
        prefixes: rows have `prompt`, `prefix` and `target`, as siren rollouts writes them, in place
            of text and label; the label says which side of one half the target lies on.
        labels: the names of labels that the category column may hold, several joined by +; what
            else it holds is no label.
        label_table: by the name of a label the categories that are of it, in which * stands for
            any characters; empty where categories are named as labels are.
        max_bytes: of a row's text in UTF-8, prompt and response together, or of a trajectory's
            messages as JSON; a larger row is an error.
    """

    text: tuple[str, ...] = ()
    label: str = "label"
    split: str = "split"
    id: str = "id"
    category: str = "category"
    source: str = "source"
    classes: tuple[str, ...] = ("safe", "harmful")
    labels: tuple[str, ...] = ()
    label_table: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trajectories: bool = False
    prefixes: bool = False
    max_bytes: int = DEFAULT_MAX_BYTES

    def labels_of(self, category: str) -> tuple[str, ...]:
        """The labels that a category is of."""
        parts = [part for name in category.split(SEPARATOR) if (part := name.strip())]
        if not self.label_table:
            return (*parts,)
        return tuple(
            label
            for label, patterns in self.label_table.items()
            if any(fnmatchcase(part, pattern) for part in parts for pattern in patterns)
        )

    def beside_response(self, fields: Fields) -> str:
        """The column of text that a row has beside a response, where it has no prompt and `text`
        does not say which to read; else "".
        """
        if self.text or not fields.get("response") or fields.get("prompt"):
            return ""
        known = "response", self.label, self.split, self.id, self.category, self.source
        return text_beside(fields, known)


@dataclass(frozen=True)
class Row:
    """One labelled text.

    Attributes:
        origin: the file and the row's place in it, for error messages.
        dataset: the name of the data set that it belongs to.
        split: train, validation, test, or any other name.
        text: cleaned as the engine cleans what it scores; of a trajectory the messages that the
            chat template gets, as JSON.
        label: index of its class.
        category: for reports; empty if the row has none.
        id: unique within the data set; None if the row has none.
        source: where the data set has the row from; empty if it does not say.
        has_response: whether its text has a response, with its prompt or alone.
        labels: what its category says of labels.
        turns: prompt and response by themselves, cleaned, of which `text` is made; empty where it
            is one text.
        trajectory: where rows are those.
        target: the expected harm of what follows, where rows are prefixes.
        is_copy: whether it is a changed copy of an earlier row, which is then the last row before
            it that is not a copy.
        skipped: characters at the beginning of `text` that a copy stands behind: its features are
            of the rest, read as a span.
        unread: the column of text beside a response without a prompt, which is read alone.
    """

    origin: str
    dataset: str
    split: str
    text: str
    label: int
    category: str
    id: str | None
    source: str = ""
    has_response: bool = False
    labels: tuple[str, ...] = ()
    turns: tuple[str, ...] = ()
    trajectory: Trajectory | None = None
    target: float | None = None
    is_copy: bool = False
    skipped: int = 0
    unread: str = ""

    @property
    def given(self) -> Text:
        """What a guard is given to score `text` as what it is: prompt and response apart, since of
        long ones the prompt is scored by itself, and its end with each window of the response.
        """
        if not self.has_response:
            return self.text
        if not self.turns:
            return None, self.text
        between = self.text.index(JOINER, len(self.turns[0]))  # blanks may stand around it
        return self.text[:between], self.text[between + len(JOINER) :]

    def length(self, most_tokens: int | None = None) -> int:
        """About how much is read of `text`, by which it takes its time: bytes of UTF-8.

        Args:
            most_tokens: what is read of a text at most; None reads all.
        """
        length = len(self.text.encode("utf-8", "surrogatepass"))
        return length if most_tokens is None else min(length, _BYTES_A_TOKEN * most_tokens)


def read_rows(source: Source, columns: Columns) -> Iterator[Row]:
    """Yield the rows of `source` in order. The memory it takes does not grow with the rows.

    Raises:
        InputError: a row is not UTF-8 or not well-formed, lacks a column, has no text that can be
            scored or one that is too large, a label that is not a class, or a category or source
            that is no name.
    """
    for origin, split, fields in read_fields(source):
        yield _parse(origin, source, split, fields, columns)


def read_all(sources: Sequence[Source], columns: Columns) -> Iterator[Row]:
    """Yield the rows of every source, and check at the end what only all of them can show.

    Raises:
        InputError: as `read_rows`; or two sources have rows in common or one name, an id occurs
            twice in a data set, there is no row at all, or a split has no row of some class, so
            that nothing can be learned or measured on it.
    """
    for source, other in combinations(sources, 2):
        if source.overlaps(other):
            raise InputError(
                f"{other.location}: has rows that {source.location} gives already; give a file, "
                "or a part of a hub data set, once"
            )
        if source.is_taken_for(other):
            raise InputError(
                f"{source.location} and {other.location} would both be the data set "
                f"{source.dataset!r}, and its figures be of both as one; rename one of them"
            )
    ids: dict[str, array[int]] = {}  # of each data set: a hash of each row's, 8 bytes
    counts: dict[str, list[int]] = {}
    names: dict[str, dict[str, None]] = {}  # of the sources of each split, in order
    for source in sources:
        unread = Counter[str]()
        for row in read_rows(source, columns):
            unread[row.unread] += 1
            if row.id is not None:
                ids.setdefault(row.dataset, array("Q")).append(text_hash(row.id))
            counts.setdefault(row.split, [0] * len(columns.classes))[row.label] += 1
            names.setdefault(row.split, {})[source.location] = None
            yield row
        warn_of_lone_responses(source.location, unread)
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
    """Read the data set again, and name the first two rows of one id among those of `hashes`.

    Two ids of one hash are no repetition, so it may find none.
    """
    first_of: dict[str, str] = {}
    for source in sources:
        if source.dataset != dataset:
            continue
        for row in read_rows(source, columns):
            if row.id is None or text_hash(row.id) not in hashes:
                continue
            first = first_of.setdefault(row.id, row.origin)
            if first != row.origin:
                raise InputError(
                    f"{row.origin}: id {shorten(row.id)} is already that of {first}; ids must be "
                    "unique within a data set"
                )


def text_hash(text: str) -> int:
    """Return 64 bits that tell texts apart but by chance."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _parse(origin: str, source: Source, split: str | None, fields: Fields, columns: Columns) -> Row:
    split = source.split or split or required_string(fields, columns.split, origin)
    if not split:
        raise InputError(f"{origin}: column {columns.split!r} is empty; write SPLIT=PATH instead")
    if not re.fullmatch(SPLIT_NAME, split):
        raise InputError(
            f"{origin}: column {columns.split!r} is {shorten(split)}; the name of a split is up to "
            "64 letters, digits, _, - and ."
        )
    trajectory = _trajectory(fields, origin) if columns.trajectories else None
    target = _target(fields, origin) if columns.prefixes else None
    has_response = trajectory is None and _has_response(fields, columns)
    identity = fields.get(columns.id)
    category = SEPARATOR.join(names_in(fields, columns.category, origin))
    return Row(
        origin=origin,
        dataset=source.dataset,
        split=split,
        text=_text(fields, columns, origin)
        if trajectory is None
        else bounded(json.dumps(chat_messages(trajectory), ensure_ascii=False), columns, origin),
        label=label_of(fields, columns, origin) if target is None else int(target >= 0.5),
        category=category,
        id=None if identity in (None, "") or identity != identity else str(identity),
        source=name_in(fields, columns.source, origin),
        has_response=has_response,
        labels=columns.labels_of(category),
        turns=_turns(fields, columns) if trajectory is None else (),
        trajectory=trajectory,
        target=target,
        unread=columns.beside_response(fields) if has_response else "",
    )


def _target(fields: Fields, origin: str) -> float:
    value = required(fields, "target", origin)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(
            f"{origin}: column 'target' is {shorten(value)}; expected a number from 0 to 1"
        )
    return float(value)


def _trajectory(fields: Fields, origin: str) -> Trajectory:
    """What `messages` and `tools` say; a string of either is JSON, for files that hold no lists."""
    of = ", of which trajectories of agents are"
    values = [required(fields, "messages", origin, of), fields.get("tools")]
    try:
        messages, tools = (
            json.loads(v, object_pairs_hook=once) if isinstance(v, str) else v for v in values
        )
        trajectory = trajectory_of(messages=messages, tools=tools)
        if not trajectory.turns:
            raise InputError("messages has no turn of a user, an assistant or a tool")
        chat_messages(trajectory)  # which checks what the turns and tools hold
    except (ValueError, RecursionError) as error:  # InputError is one
        raise InputError(f"{origin}: {error}") from None
    return trajectory


def _turns(fields: Fields, columns: Columns) -> tuple[str, ...]:
    """Prompt and response of a row, whose text was checked, where those are what it is made of.

    A prefix of a response counts as one. The prompt is all that stands before.
    """
    *before, last = columns.text or (_PREFIX_TURNS if columns.prefixes else _TURNS)
    ends_so = columns.prefixes or last == "response"
    if not ends_so or (not columns.text and _is_one_text(fields)):
        return ()
    prompt = JOINER.join(part for name in before if (part := fields.get(name)))
    turns = clean(prompt), clean(fields.get(last) or "")
    return turns if all(turn.strip() for turn in turns) else ()  # of nothing, clean makes a space


def _has_response(fields: Fields, columns: Columns) -> bool:
    """Whether the response is part of a row's text."""
    is_read = "response" in columns.text if columns.text else not _is_one_text(fields)
    return is_read and bool(fields.get("response"))


def _is_one_text(fields: Fields) -> bool:
    """Whether a row's `text` is its text: it says something, or there is no prompt or response."""
    text = fields.get("text")
    if isinstance(text, str) and not text.strip():
        return text != "" and not (fields.get("prompt") or fields.get("response"))
    return bool(text)


def _text(fields: Fields, columns: Columns, origin: str) -> str:
    names = columns.text or (_PREFIX_TURNS if columns.prefixes else ())
    parts = [required(fields, name, origin) for name in names]
    with _naming_columns(fields, origin):
        if names:
            text = JOINER.join(one_text(part, None, None) for part in parts if part)
        elif _is_one_text(fields):
            text = one_text(fields["text"], None, None)
        else:
            text = one_text(None, fields.get("prompt") or None, fields.get("response") or None)
        text = one_text(text or None, None, None)
    bounded(text, columns, origin)
    with _naming_columns(fields, origin):
        return clean(text)


@contextmanager
def _naming_columns(fields: Fields, origin: str) -> Iterator[None]:
    """Let an error say which row it is of, and which columns that has."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{origin}: {error} (columns found: {', '.join(map(str, fields))})"
        ) from None


def bounded(text: str, columns: Columns, origin: str) -> str:
    """Return a row's text, which nothing has been done with yet.

    Raises:
        InputError: it has more than `columns.max_bytes`.
    """
    try:
        check_size(text, columns.max_bytes)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
    return text


def label_of(fields: Fields, columns: Columns, origin: str) -> int:
    """The index of a row's class.

    Raises:
        InputError: the row has no such column, or no class is called so.
    """
    value = required(fields, columns.label, origin)
    if isinstance(value, str) and value in columns.classes:
        return columns.classes.index(value)
    for index in range(len(columns.classes)):
        if value == index or (isinstance(value, str) and value.strip() == str(index)):
            return index
    raise InputError(
        f"{origin}: column {columns.label!r} is {shorten(value)}; expected one of "
        f"{', '.join(columns.classes)}, or an index from 0 to {len(columns.classes) - 1}"
    )
