"""Compare a bundle's scores of texts that are read together, padded, with those of each alone."""

from collections.abc import Sequence

import msgspec
import numpy as np

from siren_runtime import Guard
from siren_runtime.backends.outputs import FloatArray
from siren_runtime.bundle.report import Verification
from siren_runtime.errors import BackendError
from siren_runtime.scoring.windows import Scored
from siren_runtime.text.reading import Window
from siren_runtime.text.rules import clean

from .texts import BATCH_TEXTS

_ONE_BATCH = 1 << 40  # tokens


def rows_of_batch(guard: Guard, *, together: bool) -> FloatArray:
    """What all heads make of texts, float32 [texts, width]: read in one batch, or each alone.

    Raises:
        BackendError: the engine failed on a text, or gave what is not finite.
    """
    (scorer,) = guard.scorers
    ids = scorer.tokenizer.encode_batch([clean(text) for text in BATCH_TEXTS])
    windows = {number: Window(tokens) for number, tokens in enumerate(ids)}
    parts = [windows] if together else [{n: window} for n, window in windows.items()]
    scored = {n: one for part in parts for n, one in scorer.run(part, _ONE_BATCH).items()}
    return np.stack([_row(scored[n]) for n in windows])


def with_batch_verification(
    report: Verification, alone: FloatArray, together: Sequence[FloatArray]
) -> Verification:
    """Add to a report how far texts' scores, of all heads, in a batch are from those of each alone.

    The reference's texts are scored one by one, so that they tell nothing of how padding is read.

    Args:
        alone: `rows_of_batch` of the score graph.
        together: the same of each graph that scores whole texts.
    """
    differences = np.abs(np.concatenate([rows - alone for rows in together]))
    report = msgspec.structs.replace(
        report,
        batch_texts=len(alone),
        batch_max_difference=float(differences.max()),
        batch_mean_difference=float(differences.mean()),
    )
    return msgspec.structs.replace(report, status="drifted") if report.batch_drifted else report


def _row(scored: Scored | BackendError) -> FloatArray:
    if isinstance(scored, BackendError):
        raise scored
    return scored.row
