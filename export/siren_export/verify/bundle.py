"""Verify a bundle before it is published: scores by a reference, batches and streams by those."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import msgspec
import onnx_ir as ir

from siren_export.passes.table import row_of
from siren_export.passes.widen_bfloat16 import widen_bfloat16
from siren_runtime.bundle.graphs import SPANS
from siren_runtime.bundle.manifest import TOKENIZER_FILE, Manifest
from siren_runtime.bundle.progress import Progress
from siren_runtime.bundle.reader import Bundle
from siren_runtime.bundle.report import Verification
from siren_runtime.errors import install_hint
from siren_runtime.text.tokenizer import Tokenizer

from .batches import rows_of_batch, with_batch_verification
from .exits import with_exit_verification
from .opened import open_unpublished
from .reference import Reference
from .scores import verify_scores
from .streams import with_stream_verification
from .unavailable import ReferenceUnavailable

ReferenceSource = Callable[[Progress], Reference]  # raises ReferenceUnavailable

_WIDENED = "widened.onnx"
_WIDENED_NOTE = "run in float32 with every result rounded to bfloat16; no engine was run"


def verify_bundle(bundle: Bundle, source: ReferenceSource, progress: Progress) -> Verification:
    """Score the built-in texts with a bundle and compare: with a reference, in a batch with alone,
    and stream with whole.

    Args:
        source: gives the reference; where there is none, the report says why.
    """
    if find_spec("onnxruntime") is None:
        reason = f"onnxruntime is not installed; {install_hint('cpu')}"
        return Verification(status="unverified", reason=reason)
    bundle = Bundle(bundle.path, _untempered(bundle.manifest))
    manifest = bundle.manifest
    bound = row_of(manifest.target, manifest.precision).bound
    tokenizer = Tokenizer(
        bundle.file(TOKENIZER_FILE),
        manifest.text.max_length,
        vocab_size=manifest.backbone.vocab_size,
    )
    reference = None
    try:
        reference = source(progress)
    except ReferenceUnavailable as reason:
        report = Verification(status="unverified", reason=str(reason))
    else:
        with _run_on_cpu(bundle) as (runnable, note):
            with open_unpublished(runnable, tokenizer) as guard:
                report = verify_scores(guard, reference, bound, progress)
                alone = rows_of_batch(guard, together=False)
                together = [rows_of_batch(guard, together=True)]
            if SPANS in runnable.manifest.graphs:
                with open_unpublished(runnable, tokenizer, spans=True) as guard:
                    together.append(rows_of_batch(guard, together=True))
        report = with_batch_verification(report, alone, together)
        report = msgspec.structs.replace(report, reason=note)
    if manifest.streams:
        report = with_stream_verification(bundle, tokenizer, report, bound)
    if manifest.cascade is not None:
        report = with_exit_verification(bundle, tokenizer, report, bound, reference)
    return report


def _untempered(manifest: Manifest) -> Manifest:
    """The manifest without the temperatures that calibration put beside heads.

    A reference knows none of them, but for those of labels, which the artifact states.
    """
    for name, head in manifest.heads.items():
        if not head.has_labels:
            decision = msgspec.structs.replace(manifest.decision(name), temperature=1.0)
            manifest = manifest.deciding(name, decision)
    return manifest


@contextmanager
def _run_on_cpu(bundle: Bundle) -> Iterator[tuple[Bundle, str | None]]:
    """The bundle in a form that ONNX Runtime's CPU runs, and what there is to know of that form."""
    if bundle.manifest.precision != "bf16":
        yield bundle, None
        return
    graph = bundle.manifest.graphs["score"]
    model = ir.load(bundle.file(graph.file))
    widen_bfloat16(model)
    widened = bundle.path / _WIDENED
    try:
        ir.save(model, widened)
        spec = msgspec.structs.replace(graph, file=_WIDENED)
        manifest = msgspec.structs.replace(bundle.manifest, graphs={"score": spec})
        yield Bundle(bundle.path, manifest), _WIDENED_NOTE
    finally:
        widened.unlink(missing_ok=True)
