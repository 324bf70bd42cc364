"""LiteLLM's generic guardrail API."""

from typing import Any, Literal

import msgspec
from litestar import post
from litestar.datastructures import State

from siren_runtime.scoring.call import Text
from siren_serve.messages import ToolCall, checked_count, text_of_call


class GuardrailRequest(msgspec.Struct, frozen=True):
    """What LiteLLM took out of a request or response.

    Further keys say who asks and in which call; they are not read, since what is to be judged is
    in these.
    """

    texts: list[str] | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    input_type: Literal["request", "response"] | None = None


class GuardrailResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether LiteLLM is to go on. `texts` are those that came: nothing is rewritten."""

    action: Literal["BLOCKED", "NONE"]
    blocked_reason: str | None = None
    texts: list[str] | None = None


@post("/beta/litellm_basic_guardrail_api", status_code=200, tags=["compatible"])
async def guardrail(data: GuardrailRequest, state: State) -> GuardrailResponse:
    """Block what is harmful, and what cannot be read."""
    if data.images:
        return GuardrailResponse("BLOCKED", "it holds pictures, which this guard cannot read")
    arguments = [text_of_call(call) for call in data.tool_calls or ()]
    given = [text for text in [*(data.texts or ()), *arguments] if text]
    answers = data.input_type == "response"
    texts: list[Text] = [(None, text) if answers else text for text in given]
    if not texts:
        return GuardrailResponse("NONE", texts=data.texts)
    served = state.guards.get(None)
    results = await served.score_all(
        checked_count(texts, state.settings.max_texts), deadline=state.settings.timeout_s
    )
    worst = max(results, key=lambda result: (result.is_harmful is not False, result.score))
    if worst.is_harmful is False:
        return GuardrailResponse("NONE", texts=data.texts)
    tier = f", tier {worst.tier}" if worst.tier else ""
    return GuardrailResponse(
        "BLOCKED", f"harmful: score {worst.score:.3f} of threshold {worst.threshold:g}{tier}"
    )
