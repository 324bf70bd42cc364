"""What answers in OpenAI's form have in common: events, the reason of a cut, a verdict beside."""

from typing import Any

import msgspec

from siren_runtime.backends.verdicts import spans_to_dict
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.streaming.result import StreamResult

FILTERED = "content_filter"  # why an answer was cut, and the code of a prompt that was blocked
DONE = b"data: [DONE]\n\n"  # the event that ends a stream


def event(value: Any) -> bytes:
    """A value in JSON, which has no line end, as one server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def harm(verdict: ScoreResult | StreamResult) -> tuple[bool, float]:
    """By which verdicts rank: what is harmful, or not known to be safe, first; then by the risk."""
    return verdict.is_harmful is not False, verdict.risk


def verdict_to_dict(verdict: ScoreResult | StreamResult, **more: Any) -> dict[str, Any]:
    """A verdict as it stands beside a text, with `more` before the spans."""
    return {
        "score": verdict.score,
        "is_harmful": verdict.is_harmful,
        "threshold": verdict.threshold,
        "tokens": verdict.tokens,
        **more,
        **spans_to_dict(verdict.risk, verdict.spans),
    }
