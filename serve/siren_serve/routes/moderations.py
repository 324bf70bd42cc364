"""`POST /v1/moderations`, as OpenAI has it."""

from uuid import uuid4

import msgspec
from litestar import post
from litestar.datastructures import State

from siren_serve.errors import RefusedRequest
from siren_serve.messages import Part, checked_count, joined, text_of_part
from siren_serve.openai_moderation import Moderation, moderation


class ModerationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text, a list of texts, or the parts of one."""

    input: str | list[str | Part]
    model: str | None = None


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
    return [joined(parts)] if parts else texts


@post("/v1/moderations", status_code=200, tags=["compatible"])
async def moderations(data: ModerationRequest, state: State) -> ModerationResponse:
    """Flag each text that is harmful, or of which too little can be read to call it safe."""
    served = state.guards.get(data.model)
    texts = checked_count([*_texts(data.input)], state.settings.max_texts)
    results = await served.score_all(texts, deadline=state.settings.timeout_s)
    guard = served.guard.guard
    heads = dict(zip(guard.heads, guard.manifests[0].heads.values(), strict=True))
    answers = [moderation(result, heads) for result in results]
    return ModerationResponse(f"modr-{uuid4().hex}", served.name, answers)
