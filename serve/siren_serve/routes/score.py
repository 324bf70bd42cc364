"""`POST /v1/score`: the full result, in the project's own form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import msgspec
from litestar import post
from litestar.datastructures import State

from siren_runtime.errors import SirenError
from siren_runtime.scoring.call import Text
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.text.reading import LongText
from siren_serve.errors import RefusedRequest
from siren_serve.guards import Served
from siren_serve.messages import Message, checked_count, judged_alone, pair_of, turns_of
from siren_serve.openai_form import harm

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


@dataclass(frozen=True)
class _Asked:
    """What is scored of one text that was given.

    Attributes:
        text: all of it.
        turns: of a conversation that waits for an answer, those of the user that are judged by
            themselves too, each with its message's place.
    """

    text: Text
    turns: Mapping[str, int]

    @property
    def texts(self) -> list[Text]:
        """The whole, and the turns."""
        return [self.text, *self.turns]

    def told(self, results: Sequence[ScoreResult | SirenError]) -> dict[str, Any]:
        """The worst of the results of `texts`, and of which message it is, if not of all.

        Raises:
            SirenError: the first that a text has; that of a message says which.
        """
        scored = list[tuple[ScoreResult, int | None]]()
        for result, place in zip(results, [None, *self.turns.values()], strict=True):
            if isinstance(result, SirenError):
                raise result if place is None else type(result)(f"messages[{place}]: {result}")
            scored.append((result, place))
        worst, place = max(scored, key=lambda one: harm(one[0]))
        return worst.to_dict() | ({} if place is None else {"message": place})


def _asked(given: str | Given | ScoreRequest) -> _Asked:
    if isinstance(given, str):
        return _Asked(given, {})
    forms = [given.text, given.prompt if given.prompt is not None else given.response]
    if sum(form is not None for form in [*forms, given.messages]) != 1:
        raise RefusedRequest(
            422,
            "cannot_be_scored",
            "a text is given by text, by prompt and/or response, or by messages: one of these",
        )
    if given.messages is not None:
        text, turns = pair_of(given.messages), turns_of(given.messages)
        return _Asked(text, judged_alone(turns, text) if isinstance(text, str) else {})
    return _Asked(given.text if given.text is not None else (given.prompt, given.response), {})


def _all_asked(request: ScoreRequest, limit: int) -> list[_Asked]:
    if request.inputs is None:
        return [_asked(request)]
    if any(v is not None for v in (request.text, request.prompt, request.response)):
        raise RefusedRequest(422, "cannot_be_scored", "give inputs or one text, not both")
    if request.messages is not None:
        raise RefusedRequest(422, "cannot_be_scored", "give inputs or messages, not both")
    return checked_count([_asked(given) for given in request.inputs], limit)


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
    asked = _all_asked(data, state.settings.max_texts)
    found = iter(await served.score_each([text for one in asked for text in one.texts], **settings))
    of_each = [(one, [*islice(found, len(one.texts))]) for one in asked]
    if data.inputs is None:
        ((one, results),) = of_each
        return {"model": served.name, **one.told(results)}
    return {"model": served.name, "results": [_told(served, *one) for one in of_each]}


def _told(
    served: Served, asked: _Asked, results: Sequence[ScoreResult | SirenError]
) -> dict[str, Any]:
    try:
        return asked.told(results)
    except SirenError as error:
        return served.told_error(error)
