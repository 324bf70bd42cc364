"""Exits: score rows with all of them, and write their bounds into a bundle."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from siren_runtime.backends.batching import micro_batches, right_pad
from siren_runtime.backends.onnxruntime.cascade import CascadeBackend
from siren_runtime.backends.onnxruntime.session import CPU, usable_threads
from siren_runtime.backends.outputs import BoolArray, FloatArray, TokenArray, no_verdict
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.progress import Progress, by_length
from siren_runtime.bundle.reader import Bundle, load_bundle
from siren_runtime.errors import InputError, SirenError
from siren_runtime.scoring.engines import Engines
from siren_runtime.scoring.scorer import Scorer
from siren_runtime.text.passage import make_passage
from siren_runtime.text.reading import LLM_SIREN_LIMITS, Reading
from siren_train.data.rows import Columns, Row
from siren_train.data.sources import Source

from .evaluate import rows_of_split
from .exit_bounds import MOST_EXITS, Bounds, ExitScores
from .guard_json import write_manifest


def score_exits(
    bundle: Bundle,
    sources: Sequence[Source],
    columns: Columns,
    split: str,
    max_rows: int | None,
    threads: int | None,
    progress: Progress,
) -> ExitScores:
    """Score the rows of a split by the whole guard and by each exit, in one pass.

    Raises:
        InputError: the bundle has no exits or more than `MOST_EXITS`, or the data is unusable or
            has no row of that split.
        BackendError: a score is not finite.
    """
    cascade = bundle.manifest.cascade
    if cascade is None:
        raise InputError(
            f"{bundle.path}: the bundle has no exits; make some with siren train --exits and "
            "siren export --exits"
        )
    if len(cascade.exits) > MOST_EXITS:
        raise InputError(
            f"{bundle.path}: bounds are chosen for {MOST_EXITS} exits at most, found "
            f"{len(cascade.exits)}; export fewer (siren export --exits)"
        )
    chosen = rows_of_split(sources, columns, split, max_rows)
    threads = None if threads is None else usable_threads(threads)
    backend = CascadeBackend(bundle, replace(CPU, threads=threads))
    scorer = Scorer(bundle, Engines(backend))
    texts = [_ids(scorer, row) for row in chosen]
    scores = np.zeros((len(texts), 1 + len(cascade.exits)))
    lengths, done = [len(ids) for ids in texts], 0
    tell = by_length(progress, "scoring", sorted(lengths))  # as batches are
    tell(0)
    for batch in micro_batches(lengths, backend.token_budget):

        def stay(
            number: int, rows: TokenArray, found: FloatArray, batch: list[int] = batch
        ) -> BoolArray:
            scores[batch, 1 + number] = found
            return rows < 0

        tokens = right_pad([texts[i] for i in batch])
        _, outputs = backend.run_leaving(*tokens, stay)
        assert outputs is not None
        scores[batch, 0] = scorer.readout.rows(outputs)[:, 0]
        done += len(batch)
        tell(done)
    if not np.isfinite(scores).all():
        raise no_verdict("score")
    return ExitScores(
        scores[:, 0],
        scores[:, 1:],
        np.array([row.label == 1 for row in chosen]),
        np.array([row.dataset for row in chosen]),
        np.array(lengths),
    )


def _ids(scorer: Scorer, row: Row) -> list[int]:
    passage = make_passage(row.text, max_bytes=LLM_SIREN_LIMITS.max_bytes)
    (reading,) = scorer.encode([passage], LLM_SIREN_LIMITS)
    if isinstance(reading, SirenError):
        raise reading
    assert isinstance(reading, Reading)
    return reading.windows[0].ids


def write_bounds(folder: Path, bounds: Bounds, loss: float, rows: int) -> Manifest:
    """Write the bounds of exits into a bundle's guard.json, and return the new manifest.

    Args:
        loss, rows: of macro-F1 that was allowed, and on how many rows.

    Raises:
        BundleError: the bundle is damaged.
        InputError: guard.json cannot be written.
    """
    manifest = load_bundle(folder).manifest
    assert manifest.cascade is not None
    exits = [
        msgspec.structs.replace(one, low=low, high=high)
        for one, (low, high) in zip(manifest.cascade.exits, bounds.bounds, strict=True)
    ]
    cascade = msgspec.structs.replace(
        manifest.cascade,
        exits=exits,
        cutoffs=manifest.cutoffs,
        loss=loss,
        rows=rows,
        cost=bounds.cost,
    )
    return write_manifest(folder, msgspec.structs.replace(manifest, cascade=cascade))
