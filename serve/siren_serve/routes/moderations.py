"""`POST /v1/moderations`, as OpenAI has it."""

from uuid import uuid4

import msgspec
from litestar import post
from litestar.datastructures import State

from siren_runtime import Guard
from siren_runtime.scoring.result import ScoreResult
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
    here: that none is named does not mean that none applies. Where a bundle has a table of them,
    those that a label covers are here, and `category_applied_input_types` names all 13, with
    nothing for those that none covers.
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


def _table(guard: Guard) -> tuple[str, dict[str, list[str]]]:
    """The first head that has a table of OpenAI's keys, by name, and the table; else none."""
    specs = zip(guard.heads, guard.manifests[0].heads.values(), strict=True)
    return next(((name, spec.openai) for name, spec in specs if spec.openai), ("", {}))


def _moderation(result: ScoreResult, head: str, table: dict[str, list[str]]) -> Moderation:
    harmful = result.is_harmful is not False
    categories, scores, read = {HARMFUL: harmful}, {HARMFUL: result.score}, {HARMFUL: ["text"]}
    for key, labels in table.items():
        read[key] = ["text"] if labels else []
        if labels:
            own = result.heads[head]
            categories[key] = any(label in own.flagged for label in labels)
            scores[key] = max(own.categories[label] for label in labels)
    return Moderation(any(categories.values()), categories, scores, read)


@post("/v1/moderations", status_code=200, tags=["compatible"])
async def moderations(data: ModerationRequest, state: State) -> ModerationResponse:
    """Flag each text that is harmful, or of which too little can be read to call it safe."""
    served = state.guards.get(data.model)
    texts = checked_count([*_texts(data.input)], state.settings.max_texts)
    results = await served.score_all(texts, deadline=state.settings.timeout_s)
    table = _table(served.guard.guard)
    answers = [_moderation(result, *table) for result in results]
    return ModerationResponse(f"modr-{uuid4().hex}", served.name, answers)
