"""LiteLLM's generic guardrail API."""

from typing import Any, Literal

import msgspec
from litestar import post
from litestar.datastructures import State

from siren_runtime.backends.verdicts import reason_of
from siren_runtime.scoring.call import Text
from siren_serve.errors import RefusedRequest
from siren_serve.messages import (
    Message,
    ToolCall,
    checked_count,
    names_of_calls,
    text_of_call,
    texts_of,
    with_names,
)
from siren_serve.openai_form import harm


class GuardrailRequest(msgspec.Struct, frozen=True):
    """What LiteLLM took out of a request or response.

    `structured_messages` are those of the request as the client sent them, of which the other keys
    may not hold all. Further keys say who asks and in which call; they are not read.
    """

    texts: list[str] | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    structured_messages: list[Any] | None = None
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
    calls = data.tool_calls or []
    arguments = with_names([text_of_call(call) for call in calls], names_of_calls(calls))
    given = [text for text in [*(data.texts or ()), *arguments] if text]
    try:
        messages = msgspec.convert(data.structured_messages or [], list[Message])
        given += [text for text in texts_of(messages) if text and text not in given]
    except (msgspec.ValidationError, RefusedRequest) as error:
        return GuardrailResponse("BLOCKED", f"structured_messages cannot be read: {error}")
    answers = data.input_type == "response"
    texts: list[Text] = [(None, text) if answers else text for text in given]
    if not texts and data.texts is None:
        return GuardrailResponse("BLOCKED", "it holds no text that this guard can read")
    if not texts:
        return GuardrailResponse("NONE", texts=data.texts)
    served = state.guards.get(None)
    results = await served.score_all(
        checked_count(texts, state.settings.max_texts), deadline=state.settings.timeout_s
    )
    worst = max(results, key=harm)
    if worst.is_harmful is False:
        return GuardrailResponse("NONE", texts=data.texts)
    return GuardrailResponse("BLOCKED", f"harmful: {reason_of(worst.heads)}")
