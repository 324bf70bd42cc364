"""The guard as rails of NeMo Guardrails: what users say, models answer, and tools are asked."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from nemoguardrails import LLMRails
from nemoguardrails.actions.rail_outcome import RailOutcome

from siren_runtime.scoring.call import Text
from siren_serve.proxy.texts import said_by

from .guarding import Blocked, Guarding, SettingsError

_OF_STREAMS = "stride", "response_only", "aggregation", "span", "max_streams", "max_stream_tokens"
_UNUSED = dict.fromkeys(_OF_STREAMS, "NeMo asks of each chunk of a stream as of a text")

Context = Mapping[str, Any]
Events = Sequence[dict[str, Any]]


def plug_in(rails: LLMRails, **settings: Any) -> None:
    """Give rails the actions that their flows execute (docs/integrations.md).

    `siren_check_input`, `siren_check_output` and `siren_check_tool_calls` block what is harmful.
    Where there is no verdict they fail, and NeMo answers that an internal error has occurred.

    Args:
        settings: the fields of `GuardSettings`, but for those of streams.

    Raises:
        SettingsError: one is not known or cannot be used, or text would go out unread: with
            NeMo's `stream_first`, and with `parallel` rails, whose failures NeMo passes over.
    """
    config = rails.config.rails
    if config.input.parallel or config.output.parallel:
        raise SettingsError("rails: the guard needs parallel: false, for input and output")
    if config.output.streaming.enabled and config.output.streaming.stream_first:
        raise SettingsError("rails.output.streaming: the guard needs stream_first: false")
    guarding = Guarding(settings, _UNUSED)

    async def check_input(context: Context, **_: Any) -> RailOutcome:
        return await _outcome(guarding, context["user_message"])

    async def check_output(context: Context, events: Events = (), **_: Any) -> RailOutcome:
        thoughts = _of_turn(events, "BotThinking")
        said = "\n".join([*(thought["content"] for thought in thoughts), context["bot_message"]])
        return await _or_empty(
            _outcome(guarding, (context.get("user_message"), said)), thoughts, "content"
        )

    async def check_tool_calls(context: Context, events: Events = (), **_: Any) -> RailOutcome:
        asked, said = context.get("user_message"), said_by({"tool_calls": context["tool_calls"]})
        return await _or_empty(
            _outcome(guarding, *((asked, text) for text in said)),
            _of_turn(events, "BotToolCalls"),
            "tool_calls",
        )

    for action in (check_input, check_output, check_tool_calls):
        rails.register_action(action, f"siren_{action.__name__}")


async def _outcome(guarding: Guarding, *texts: Text) -> RailOutcome:
    try:
        await guarding.check(texts)
    except Blocked as blocked:
        return RailOutcome.block(reason=str(blocked))
    return RailOutcome.allow()


async def _or_empty(judging: Awaitable[RailOutcome], events: Events, key: str) -> RailOutcome:
    """Empty events unless they may pass: NeMo gives them out beside its refusal."""
    passes = False
    try:
        outcome = await judging
        passes = not outcome.is_blocked
        return outcome
    finally:
        if not passes:
            for event in events:
                event[key] = None


def _of_turn(events: Events, kind: str) -> Events:
    """The events of a kind since the user spoke."""
    found: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "UserMessage":
            found = []
        elif event["type"] == kind:
            found.append(event)
    return found
