"""What a bundle must pass before it is published, and what is said of it where it may drift."""

from pathlib import Path

import msgspec

from siren_export.sources.checkpoint import Checkpoint
from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.bundle.progress import Progress
from siren_runtime.bundle.reader import Bundle
from siren_runtime.bundle.report import Verification
from siren_runtime.bundle.types import Precision
from siren_runtime.errors import BundleError, CheckpointError
from siren_runtime.scoring.scorer import open_trajectory_reader
from siren_runtime.text.tokenizer import Tokenizer

from .bundle import ReferenceSource, verify_bundle
from .texts import TEXTS, own_texts
from .tokens import compare_tokens, why_not_compared
from .trajectories import compare_rendering


def accepted(
    output: Path,
    checkpoint: Checkpoint,
    bundle: Bundle,
    reference: ReferenceSource,
    progress: Progress,
    *,
    allow_drift: bool,
) -> Verification:
    """Compare a bundle's tokens and scores with those of a reference.

    Args:
        output: where the bundle is to stand, for errors.
        allow_drift: report what drifts, and do not refuse it.

    Raises:
        BundleError: tokens, rendered messages or scores differ beyond the bound.
    """
    tokens = _check_tokens(output, checkpoint, bundle, allow_drift)
    report = verify_bundle(bundle, reference, progress)
    if report.status == "unverified" and (why := why_not_compared(checkpoint)):
        told = f"{report.reason}; its tokens were compared with none either: {why}"
        report = msgspec.structs.replace(report, reason=told)
    if not allow_drift:
        _check_drift(output, report, bundle.manifest.precision)
    if tokens is not None:
        report = msgspec.structs.replace(report, status="drifted", reason=tokens)
    return report


def check_remote_code(checkpoint: Checkpoint, report: Verification) -> None:
    """Refuse a checkpoint that names code of its own where the bundle's scores were compared with
    none, or, of an ONNX file, whose code is its tokenizer's, its tokens were.

    Raises:
        CheckpointError: it does.
    """
    if checkpoint.remote_code is None:
        return
    why = report.reason if report.status == "unverified" else None
    if why is None and checkpoint.onnx is not None:
        why = why_not_compared(checkpoint)
    if why is not None:
        raise CheckpointError(
            f"{checkpoint.remote_code}: none of that code is in the bundle, and whether it does as "
            f"the standard class does could not be verified ({why})"
        )


def _check_tokens(
    output: Path, checkpoint: Checkpoint, bundle: Bundle, allow_drift: bool
) -> str | None:
    """Refuse a tokenizer or a chat template that transformers reads otherwise, or return how where
    it is allowed.
    """
    length = bundle.manifest.text.max_length
    differs = compare_tokens(checkpoint, [*TEXTS, *own_texts([], length)])
    reader = open_trajectory_reader(bundle, Tokenizer(bundle.file(TOKENIZER_FILE), length))
    if differs is None and reader is not None:
        differs = compare_rendering(checkpoint, reader)
    if differs is not None and not allow_drift:
        raise BundleError(
            f"{output}: {differs}; give --allow-drift to keep the bundle all the same"
        )
    return differs


def _check_drift(output: Path, report: Verification, precision: Precision) -> None:
    """Refuse a bundle whose scores, or those of batches or streams, miss the bound."""
    for name, head in report.further.items():
        if not head.passed:
            raise BundleError(
                f"{output}: scores of the head {name!r} drift from {report.reference} by up to "
                f"{head.max_difference:.2e}, {head.mean_difference:.2e} in the mean, beyond the "
                f"{precision} bound of {report.bound:.0e} for the {report.bounded} (worst text "
                f"{head.worst_text!r}); give --allow-drift to keep the bundle all the same"
            )
    if report.batch_drifted:
        raise BundleError(
            f"{output}: scores of texts in a batch, padded, are up to "
            f"{report.batch_max_difference:.2e} from those of each alone, "
            f"{report.batch_mean_difference:.2e} in the mean, beyond the {precision} bound of "
            f"{report.bound:.0e} for the {report.bounded}; is padding read as text? Give "
            "--allow-drift to keep the bundle all the same"
        )
    if report.status == "drifted":
        raise BundleError(
            f"{output}: scores drift from {report.reference} by up to "
            f"{report.max_difference:.2e}, {report.mean_difference:.2e} in the mean, "
            f"beyond the {precision} bound of {report.bound:.0e} for the "
            f"{report.bounded} (worst text {report.worst_text!r}); "
            "give --allow-drift to keep the bundle all the same"
        )
    if report.stream_drifted:
        raise BundleError(
            f"{output}: scores of stream.onnx, fed in chunks, are up to "
            f"{report.stream_max_difference:.2e} from those of score.onnx, "
            f"{report.stream_mean_difference:.2e} in the mean, beyond the {precision} bound of "
            f"{report.stream_bound:.0e} for the {report.stream_bounded}; give --no-stream, or "
            "--allow-drift to keep the bundle all the same"
        )
    if report.exits_drifted:
        raise BundleError(
            f"{output}: scores of the segments behind exits are up to "
            f"{report.exit_max_difference:.2e} from those of score.onnx, beyond the {precision} "
            f"bound of {report.exit_bound:.0e}; export without exits, or give --allow-drift to "
            "keep the bundle all the same"
        )
