"""Open a bundle that is not published yet: its guard.json is not written, or not its own."""

from dataclasses import replace

from siren_runtime import Guard
from siren_runtime.backends.onnxruntime.session import CPU
from siren_runtime.backends.onnxruntime.stream_cascade import CascadeStreamBackend
from siren_runtime.bundle.reader import Bundle
from siren_runtime.scoring.engines import Engines, Request, open_backend, open_stream_backend
from siren_runtime.scoring.scorer import Scorer
from siren_runtime.text.reading import LLM_SIREN_LIMITS
from siren_runtime.text.tokenizer import Tokenizer

_CPU = Request("cpu", spans_graph=False)


def open_unpublished(
    bundle: Bundle,
    tokenizer: Tokenizer,
    *,
    streaming: bool = False,
    segments: bool = False,
    spans: bool = False,
) -> Guard:
    """A guard on the CPU, from the manifest that `bundle` holds, that reads as llm-siren does.

    Args:
        streaming: it streams; else it scores whole texts.
        segments: it streams through all segments behind exits, which the bundle has.
        spans: it scores whole texts by the graph of spans, which the bundle has.
    """
    if segments:
        engines = Engines(None, lambda: CascadeStreamBackend(bundle, CPU))
    elif streaming:
        engines = Engines(None, lambda: open_stream_backend(bundle, _CPU))
    else:
        engines = Engines(open_backend(bundle, replace(_CPU, spans_graph=spans)))
    return Guard([Scorer(bundle, engines, tokenizer)], limits=LLM_SIREN_LIMITS)
