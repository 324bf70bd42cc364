"""The routes of two servers of classifiers: text-embeddings-inference's and vLLM's.

Their clients take the likelier label, so that must be the one that the guard decides on.
"""

import math
import time
from typing import Literal
from uuid import uuid4

import msgspec
from litestar import post
from litestar.datastructures import State

from siren_runtime.scoring.call import Text
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.scoring.verdict import log_odds, shifted
from siren_runtime.text.reading import LongText
from siren_serve.errors import RefusedRequest
from siren_serve.messages import checked_count

LABELS = "safe", "harmful"
_EVEN = 0.5


class NoParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What huggingface_hub's client sends where its caller names none."""


class PredictRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text, a pair of prompt and response, or a batch of lists of either."""

    inputs: str | list[str | list[str]]
    truncate: bool | None = None
    truncation_direction: Literal["Right", "right"] | None = None
    raw_scores: Literal[False] | None = None
    parameters: NoParameters | None = None


class Prediction(msgspec.Struct, frozen=True):
    """A label and its probability."""

    score: float
    label: str


def _predictions(result: ScoreResult) -> list[Prediction]:
    """Both labels, the likelier first."""
    pairs = zip(_probabilities(result), LABELS, strict=True)
    safe, harmful = (Prediction(score, label) for score, label in pairs)
    return [harmful, safe] if harmful.score >= _EVEN else [safe, harmful]


def _probabilities(result: ScoreResult) -> list[float]:
    """Of safe and of harmful: the risk, moved in log-odds so that its threshold stands at one half.

    What is not known well enough to be called safe is harmful.
    """
    if result.is_harmful is None:
        return [0.0, 1.0]
    harmful = shifted(result.risk, -log_odds(result.threshold))
    if result.is_harmful != (harmful >= _EVEN):  # by rounding
        harmful = _EVEN if result.is_harmful else math.nextafter(_EVEN, 0)
    return [1 - harmful, harmful]


def _sequence(given: str | list[str]) -> Text:
    if isinstance(given, str):
        return given
    if len(given) == 1:
        return given[0]
    if len(given) == 2:
        return given[0], given[1]
    raise RefusedRequest(
        422, "cannot_be_scored", f"an input is a text or a pair of texts, found {len(given)}; a "
        "batch is a list of lists"
    )  # fmt: skip


@post("/predict", status_code=200, tags=["compatible"])
async def predict(data: PredictRequest, state: State) -> list[Prediction] | list[list[Prediction]]:
    """Classify as text-embeddings-inference does."""
    batch = isinstance(data.inputs, list) and any(isinstance(one, list) for one in data.inputs)
    inputs = data.inputs if batch else [data.inputs]
    texts = [_sequence(given) for given in inputs]  # type: ignore[arg-type]
    # There a text that is too long is then not refused; here all of it is read.
    long_text: LongText | None = "windows" if data.truncate else None
    results = await state.guards.get(None).score_all(
        checked_count(texts, state.settings.max_texts),
        long_text=long_text,
        deadline=state.settings.timeout_s,
    )
    answers = [_predictions(result) for result in results]
    return answers if batch else answers[0]


class ClassifyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text or a list of texts. `user`, `priority` and `request_id` change no score."""

    input: str | list[str]
    model: str | None = None
    user: str | None = None
    priority: int | None = None
    request_id: str | None = None


class Classification(msgspec.Struct, frozen=True):
    """The verdict on one text: the label that the guard decides on, the probabilities of both."""

    index: int
    label: str
    probs: list[float]
    num_classes: int = 2


class Usage(msgspec.Struct, frozen=True):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyResponse(msgspec.Struct, frozen=True):
    """One classification a text."""

    id: str
    created: int
    model: str
    data: list[Classification]
    usage: Usage
    object: str = "list"


@post("/classify", status_code=200, tags=["compatible"])
async def classify(data: ClassifyRequest, state: State) -> ClassifyResponse:
    """Classify as vLLM does."""
    served = state.guards.get(data.model)
    texts: list[Text] = [data.input] if isinstance(data.input, str) else [*data.input]
    results = await served.score_all(
        checked_count(texts, state.settings.max_texts), deadline=state.settings.timeout_s
    )
    found = [
        Classification(index, LABELS[result.is_harmful is not False], _probabilities(result))
        for index, result in enumerate(results)
    ]
    tokens = sum(result.tokens for result in results)
    return ClassifyResponse(
        f"classify-{uuid4().hex}", int(time.time()), served.name, found, Usage(tokens, tokens)
    )
