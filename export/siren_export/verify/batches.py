"""Compare a bundle's scores of texts that are read together, padded, with those of each alone."""

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


def with_batch_verification(guard: Guard, report: Verification) -> Verification:
    """Add to a report how far texts' scores, of all heads, in a batch are from those of each alone.

    The reference's texts are scored one by one, so that they tell nothing of how padding is read.

    Raises:
        BackendError: the engine failed on a text, or gave what is not finite.
    """
    (scorer,) = guard.scorers
    ids = scorer.tokenizer.encode_batch([clean(text) for text in BATCH_TEXTS])
    windows = {number: Window(tokens) for number, tokens in enumerate(ids)}
    together = scorer.run(windows, _ONE_BATCH)
    alone = {number: scorer.run({number: windows[number]})[number] for number in windows}
    differences = np.abs([_row(together[n]) - _row(alone[n]) for n in windows])
    report = msgspec.structs.replace(
        report,
        batch_texts=len(windows),
        batch_max_difference=float(differences.max()),
        batch_mean_difference=float(differences.mean()),
    )
    return msgspec.structs.replace(report, status="drifted") if report.batch_drifted else report


def _row(scored: Scored | BackendError) -> FloatArray:
    if isinstance(scored, BackendError):
        raise scored
    return scored.row
