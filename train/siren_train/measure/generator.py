"""Score labelled text with a grafted generator, and write how its heads decide."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec
import numpy as np

from siren_runtime import GuardedGenerator
from siren_runtime.backends.verdicts import HeadScore
from siren_runtime.bundle.files import write_whole
from siren_runtime.bundle.heads import Decision, check_decision
from siren_runtime.bundle.manifest import MANIFEST_FILE
from siren_runtime.bundle.progress import Progress, by_length
from siren_runtime.errors import InputError
from siren_runtime.generation.manifest import encode, load_manifest
from siren_runtime.text.spans import DEFAULT_SIZES
from siren_runtime.text.tokenizer import Encoded
from siren_train.data.dilution import Dilution
from siren_train.data.rows import Columns, Row
from siren_train.data.sources import Source

from .calibrate_spans import SpanScores
from .evaluate import Scores, highest_spans, rows_of_split


def score_with_generator(
    generator: GuardedGenerator,
    head: str,
    sources: Sequence[Source],
    columns: Columns,
    split: str,
    max_rows: int | None,
    progress: Progress,
    spans: Sequence[int] = (),
) -> tuple[Scores, list[InputError]]:
    """Score the rows of a split as the generator would, had it written their responses.

    A row's prompt stands in the chat template where the head was trained so. A row whose text
    `generate` would refuse, as one without room in the model, is left out.

    Args:
        head: whose scores are taken.
        max_rows: of each data set, of each class alike; None is all.
        spans: sizes of spans that the generator looks at too.

    Returns:
        The scores, and why each row was left out that was.

    Raises:
        InputError: the data is unusable, or has no row of that split that can be read.
        BackendError: the engine failed.
    """
    taken = rows_of_split(sources, columns, split, max_rows)
    read, refusals = _read_rows(generator, head, taken, "reading", progress)
    scores = Scores(
        np.array([verdict.score for _, verdict in read], np.float64),
        np.array([row.label == 1 for row, _ in read]),
        np.array([row.dataset for row, _ in read]),
        np.array([row.category for row, _ in read]),
        has_response=np.array([row.has_response for row, _ in read]),
        spans=highest_spans([verdict.spans for _, verdict in read], spans),
    )
    return scores, refusals


def score_spans_with_generator(
    generator: GuardedGenerator,
    head: str,
    rows: Sequence[Row],
    among: Sequence[Row],
    lengths: Sequence[int],
    progress: Progress,
    sizes: Sequence[int] = DEFAULT_SIZES,
) -> tuple[SpanScores, list[InputError]]:
    """Score the spans of rows alone, and behind so many tokens of the safe ones `among` others.

    Args:
        generator: looks at spans of `sizes`.

    Returns:
        The scores, and why each row was left out that was.

    Raises:
        InputError: as `Dilution.of`, or no row can be read.
        BackendError: the engine failed.
    """
    tokens, among = _Tokens(generator), [row for row in among if "\0" not in row.text]
    behind = [row for n in lengths for row in Dilution(tokens, n, "behind").of(rows, among)]
    read, refusals = _read_rows(generator, head, [*rows, *behind], "scoring spans", progress)
    return (
        SpanScores(
            highest_spans([verdict.spans for _, verdict in read], sizes),
            np.array([row.label == 1 for row, _ in read]),
            np.array([row.has_response for row, _ in read]),
            sizes,
        ),
        refusals,
    )


class _Tokens:
    """The tokens of a generator and the text that each completes, to cut texts behind so many."""

    def __init__(self, generator: GuardedGenerator) -> None:
        self._engine = generator.engine

    def encode(self, text: str, *, special: bool) -> Encoded:
        """The tokens of a text, which has no special ones."""
        ids, decode = self._engine.encode(text), self._engine.pieces().decode
        ends = [0, *accumulate(len(decode(token)) for token in ids)]
        return Encoded(ids, [*pairwise(ends)])


def _read_rows(
    generator: GuardedGenerator, head: str, rows: Sequence[Row], stage: str, progress: Progress
) -> tuple[list[tuple[Row, HeadScore]], list[InputError]]:
    """The verdict on each row that can be read, and why each other cannot.

    Raises:
        InputError: none can.
    """
    found: list[tuple[Row, HeadScore]] = []
    refusals: list[InputError] = []
    tell = by_length(progress, stage, [row.length() for row in rows])
    tell(0)
    for done, row in enumerate(rows, start=1):
        try:
            found.append((row, _verdict(generator, head, row)))
        except InputError as error:
            refusals.append(error)
        tell(done)
    if not found:
        raise refusals[0]
    return found, refusals


def _verdict(generator: GuardedGenerator, head: str, row: Row) -> HeadScore:
    trained_on = generator.manifest.trained_on
    chat = trained_on is None or trained_on.text == "chat"
    prompt, *answer = row.turns or (row.text,)
    response = "".join(answer)
    if not chat:  # in plain text what joins the two stands before the response
        cut = len(row.text) - (len(response) if row.text.endswith(response) else 0)
        prompt, response = row.text[:cut], row.text[cut:]
    return generator.read(prompt, response, chat=chat).heads[head]


def write_graft_decision(folder: Path, head: str, decision: Decision) -> None:
    """Let a head of a grafted generator decide so.

    Raises:
        BundleError: guard.json is damaged, or the decision contradicts itself; the old one stays.
        InputError: guard.json cannot be written.
    """
    manifest = load_manifest(folder)
    check_decision(head, manifest.heads[head], decision, str(folder / MANIFEST_FILE))
    decisions = {**manifest.decisions, head: decision}
    data = encode(msgspec.structs.replace(manifest, decisions=decisions))
    write_whole(folder / MANIFEST_FILE, data, InputError)
