"""`POST /v1/moderations`, as OpenAI has it."""

from uuid import uuid4

import msgspec
from litestar import post
from litestar.datastructures import State

from siren_serve.errors import RefusedRequest
from siren_serve.messages import Part, checked_count, text_of_part

HARMFUL = "harmful"  # the one category of a guard that has no others


class ModerationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text, a list of texts, or the parts of one."""

    input: str | list[str | Part]
    model: str | None = None


class Moderation(msgspec.Struct, frozen=True):
    """The verdict on one text.

    A guard that tells harmful from harmless says nothing of OpenAI's categories, so they are not
    here: that none is named does not mean that none applies.
    """

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class ModerationResponse(msgspec.Struct, frozen=True):
    """One result a text."""

    id: str
    model: str
    results: list[Moderation]


def _texts(given: str | list[str | Part]) -> list[str]:
    if isinstance(given, str):
        return [given]
    texts = [item for item in given if isinstance(item, str)]
    parts = [text_of_part(item) for item in given if isinstance(item, Part)]
    if texts and parts:
        raise RefusedRequest(422, "cannot_be_scored", "input mixes texts and parts; send one form")
    return ["\n".join(parts)] if parts else texts


@post("/v1/moderations", status_code=200, tags=["compatible"])
async def moderations(data: ModerationRequest, state: State) -> ModerationResponse:
    """Flag each text that is harmful, or of which too little can be read to call it safe."""
    served = state.guards.get(data.model)
    texts = checked_count([*_texts(data.input)], state.settings.max_texts)
    results = await served.score_all(texts, deadline=state.settings.timeout_s)
    answers = []
    for result in results:
        flagged = result.is_harmful is not False
        answers.append(
            Moderation(flagged, {HARMFUL: flagged}, {HARMFUL: result.score}, {HARMFUL: ["text"]})
        )
    return ModerationResponse(f"modr-{uuid4().hex}", served.name, answers)
