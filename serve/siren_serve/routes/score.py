"""`POST /v1/score`: the full result, in the project's own form."""

from typing import Annotated, Any

import msgspec
from litestar import post
from litestar.datastructures import State

from siren_runtime.errors import SirenError
from siren_runtime.scoring.call import Text
from siren_runtime.text.reading import LongText
from siren_serve.errors import RefusedRequest, text_error
from siren_serve.messages import Message, checked_count, pair_of

# Each size costs an encoder a reading of the text or several, and small ones many short texts.
SpanSizes = Annotated[list[Annotated[int, msgspec.Meta(ge=8, le=4096)]], msgspec.Meta(max_length=8)]


class Given(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text in a list: `text`, `prompt` and/or `response`, or `messages`."""

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: list[Message] | None = None


class ScoreRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to score, in one of five forms, and how.

    Attributes:
        text, prompt, response, messages: one text; the answer is its result.
        inputs: a list of texts, each a string or an object; the answer is a list.
        model: the guard's name; None is the server's first.
        threshold, long_text, spans, order: as `Guard.score`.
    """

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: list[Message] | None = None
    inputs: list[str | Given] | None = None
    model: str | None = None
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    long_text: LongText | None = None
    spans: bool | SpanSizes | None = None
    order: int | None = None


def _text(given: Given | ScoreRequest) -> Text:
    forms = [given.text, given.prompt if given.prompt is not None else given.response]
    if sum(form is not None for form in [*forms, given.messages]) != 1:
        raise RefusedRequest(
            422,
            "cannot_be_scored",
            "a text is given by text, by prompt and/or response, or by messages: one of these",
        )
    if given.messages is not None:
        return pair_of(given.messages)
    return given.text if given.text is not None else (given.prompt, given.response)


def _texts(request: ScoreRequest, limit: int) -> list[Text]:
    if request.inputs is None:
        return [_text(request)]
    if any(v is not None for v in (request.text, request.prompt, request.response)):
        raise RefusedRequest(422, "cannot_be_scored", "give inputs or one text, not both")
    if request.messages is not None:
        raise RefusedRequest(422, "cannot_be_scored", "give inputs or messages, not both")
    texts = [given if isinstance(given, str) else _text(given) for given in request.inputs]
    return checked_count(texts, limit)


@post("/v1/score", status_code=200, tags=["score"])
async def score(data: ScoreRequest, state: State) -> dict[str, Any]:
    """Score one text, or a list of them, in which one that cannot be scored has an error."""
    served = state.guards.get(data.model)
    settings = {
        "threshold": data.threshold,
        "long_text": data.long_text,
        "spans": data.spans,
        "order": data.order,
        "deadline": state.settings.timeout_s,
    }
    texts = _texts(data, state.settings.max_texts)
    if data.inputs is None:
        (result,) = await served.score_all(texts, **settings)
        return {"model": served.name, **result.to_dict()}
    results = await served.score_each(texts, **settings)
    return {
        "model": served.name,
        "results": [
            text_error(result) if isinstance(result, SirenError) else result.to_dict()
            for result in results
        ],
    }
