"""The guard as a guardrail of LiteLLM's proxy: prompts, answers, and streams as they come."""

import logging
from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import msgspec
import openai
from fastapi import HTTPException
from litellm.exceptions import GuardrailRaisedException
from litellm.integrations.custom_guardrail import CustomGuardrail
from litellm.types.guardrails import GuardrailEventHooks, LitellmParams
from litellm.types.utils import ModelResponse, ModelResponseStream, TextCompletionResponse

from siren_runtime.errors import SirenError
from siren_runtime.text.names import is_name
from siren_serve.errors import RefusedRequest, refused
from siren_serve.proxy.beside import ALWAYS_READ, PROMPTS_ELSEWHERE, UNREADABLE, Kind
from siren_serve.proxy.calls import READ, Call, read_call
from siren_serve.proxy.extras import Extras
from siren_serve.proxy.texts import MOST_STREAMS, Joined, check_alternatives, said_by

from .guarding import Blocked, Guarding, Reading, SettingsError

_log = logging.getLogger(__name__)
_KINDS: dict[str, Kind] = {
    "completion": "chat/completions",
    "acompletion": "chat/completions",
    "text_completion": "completions",
    "atext_completion": "completions",
}
# Of a request, in whatever spelling; some of it is refused. LiteLLM sends on what it does not know.
_READ = {"tools", "functions", *READ, *ALWAYS_READ, *PROMPTS_ELSEWHERE, *UNREADABLE}
_HOOKS = [
    GuardrailEventHooks.pre_call,
    GuardrailEventHooks.during_call,
    GuardrailEventHooks.post_call,
]


class SirenGuardrail(CustomGuardrail):
    """Blocks what is harmful, and what has no verdict; changes nothing.

    A prompt is read before the model or beside it, an answer behind its prompt, each choice by
    itself, and a stream as it comes: a chunk goes out when all text up to its end has been read.
    Calls that are neither chat completions nor completions are refused.
    """

    # LiteLLM's other way asks `apply_guardrail`, and only of the kinds of calls that it knows.
    use_native_lifecycle_hooks = True

    def __init__(
        self,
        guardrail_name: str | None = None,
        event_hook: Any = None,
        default_on: bool | None = False,
        **settings: Any,
    ) -> None:
        """Open the guard.

        Args:
            guardrail_name, event_hook, default_on: as LiteLLM has them; of the hooks, which are
                the modes of its configuration, pre_call, during_call and post_call.
            settings: the fields of `GuardSettings`, among all those that LiteLLM passes.

        Raises:
            SettingsError: one is not known, or cannot be used.
        """
        try:
            super().__init__(
                guardrail_name=guardrail_name,
                supported_event_hooks=_HOOKS,
                event_hook=event_hook,
                default_on=bool(default_on),
            )
        except (ValueError, TypeError) as error:
            raise SettingsError(f"the guardrail {guardrail_name!r}: {error}") from error
        self._guarding = Guarding(_ours(settings))

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> None:
        """Score the prompt before the model is asked."""
        await self._check_prompt(data, call_type)

    async def async_moderation_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, call_type: str
    ) -> None:
        """Score the prompt beside the model's work, whose answer waits for it."""
        await self._check_prompt(data, call_type)

    async def async_post_call_success_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, response: Any
    ) -> None:
        """Score an answer that came at once."""
        with self._refusals():
            call = _call_of(data, _kind_of(response))
            answer = _dumped(response)
            said = [(_context(call, one["index"]), said_by(one)) for one in answer["choices"]]
            said.append((_context(call, None), [*Extras().add(answer).values()]))
            await self._guarding.check([(prompt, text) for prompt, texts in said for text in texts])

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: AsyncIterable[Any], request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Read an answer as it comes; its harm, or want of a verdict, ends all of its choices."""
        held: list[Any] = []
        async with AsyncExitStack() as stack:
            answer = _Answer(self._guarding, request_data, stack)
            try:
                async for chunk in response:
                    with self._refusals():
                        await answer.take(chunk)
                    held.append(chunk)
                    if answer.is_read:
                        for read in held:
                            yield read
                        held = []
            except openai.APIError as error:
                if refusal := await self._instead_of(request_data, error):
                    raise refusal from None
                raise
            with self._refusals():
                await answer.read()
            for read in held:
                yield read

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
    ) -> HTTPException | None:
        """Score what LiteLLM tells of a model server's error; if it may not go out, return another
        of the same status.
        """
        if not self.should_run_guardrail(request_data, GuardrailEventHooks.post_call):
            return None
        refusal = await self._instead_of(request_data, original_exception)
        return None if refusal is None else HTTPException(refusal.status_code, str(refusal))

    async def _instead_of(
        self, data: Mapping[str, Any], error: Exception
    ) -> GuardrailRaisedException | None:
        """What stands, with its status, in the place of a model server's error that may not go out.

        The error may quote an answer, so it is scored as one.
        """
        if not isinstance(error, openai.APIError):  # LiteLLM's are of these kinds too
            return None
        others = [getattr(error, key, None) for key in ("type", "code", "param")]
        told = [str(error), *(v for v in others if isinstance(v, str) and not is_name(v))]
        try:
            with self._refusals():
                call = _call_of(data, "chat/completions" if "messages" in data else "completions")
                await self._guarding.check([(_context(call, None), "\n".join(told))])
        except GuardrailRaisedException as refusal:
            said = str(refusal)
        except Exception:  # LiteLLM would log it, and send the error
            _log.exception("a model server's error was not read")
            said = "no verdict, so nothing passes"
        else:
            return None
        return self._refusal(said, getattr(error, "status_code", None) or 500)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Raise what LiteLLM answers with; an HTTPException would break a stream's connection."""
        try:
            yield
        except Blocked as blocked:
            raise self._refusal(str(blocked), 400, blocked_content=True) from None
        except (RefusedRequest, SirenError, msgspec.MsgspecError, TypeError) as error:
            message = f"no verdict, so nothing passes: {error}"
            raise self._refusal(message, refused(error).status) from error

    def _refusal(self, message: str, status: int, **options: bool) -> GuardrailRaisedException:
        return GuardrailRaisedException(
            self.guardrail_name,
            message,
            should_wrap_with_default_message=False,
            status_code=status,
            **options,
        )

    async def _check_prompt(self, data: dict[str, Any], call_type: str) -> None:
        with self._refusals():
            kind = _KINDS.get(call_type)
            if kind is None:
                raise _not_read(f"a call of the kind {call_type}")
            await self._guarding.check(_call_of(data, kind).prompts)


class _Answer:
    """The choices of a streamed answer, each with the streams of the guard that it asks for."""

    def __init__(
        self, guarding: Guarding, request: Mapping[str, Any], stack: AsyncExitStack
    ) -> None:
        self._guarding, self._request, self._stack = guarding, request, stack
        self._call: Call | None = None
        # Of a choice, or None of what stands beside them, and of its stream.
        self._readings: dict[tuple[int | None, int], Reading] = {}
        self._joined: dict[int, Joined] = {}
        self._extras = Extras(MOST_STREAMS)

    @property
    def is_read(self) -> bool:
        """Whether all that came may go out."""
        return all(reading.is_read for reading in self._readings.values())

    async def take(self, chunk: Any) -> None:
        """Take a chunk; errors as `Reading.add`, or RefusedRequest where it cannot be read."""
        kind = _kind_of(chunk)
        self._call = self._call or _call_of(self._request, kind)
        answer = _dumped(chunk)
        await self._add(self._call, None, self._extras.add(answer))
        for choice in answer["choices"]:
            index = choice["index"]
            joined = self._joined.setdefault(index, Joined(MOST_STREAMS))
            await self._add(self._call, index, joined.add(choice))
            if choice.get("finish_reason") is not None:
                await self.read(index)

    async def read(self, index: int | None = None) -> None:
        """Read all of a choice, or of all, that end now; errors as `take`."""
        for (choice, _), reading in self._readings.items():
            if index in (None, choice):
                await reading.read(last=True)

    async def _add(self, call: Call, index: int | None, added: Mapping[int, str]) -> None:
        for stream, text in added.items():
            if (index, stream) not in self._readings:
                reading = self._guarding.reading(_context(call, index))
                self._readings[index, stream] = await self._stack.enter_async_context(reading)
            await self._readings[index, stream].add(text)
            if index is None:  # nothing says that it ends, and perhaps nothing more comes
                await self._readings[index, stream].read()


def _ours(given: Mapping[str, Any]) -> dict[str, Any]:
    """What LiteLLM passes, without its own settings where they say nothing.

    Those that were set stay, so they are refused: this guardrail does not know them.
    """
    theirs = LitellmParams(guardrail="", mode="pre_call").model_dump(exclude_none=True)
    return {k: v for k, v in given.items() if k not in theirs or theirs[k] != v}


def _kind_of(answer: Any) -> Kind:
    if isinstance(answer, ModelResponse | ModelResponseStream):
        return "chat/completions"
    if isinstance(answer, TextCompletionResponse):
        return "completions"
    raise _not_read(f"an answer of the kind {type(answer).__name__}")


def _call_of(data: Mapping[str, Any], kind: Kind) -> Call:
    asked = {k: v for k, v in data.items() if k.casefold() in _READ and v is not None}
    call = read_call(kind, msgspec.json.encode(asked))
    if call.unread is not None:
        raise call.unread
    call.check_alternatives()
    return call


def _dumped(given: Any) -> dict[str, Any]:
    """An answer, or a chunk of one, as it goes out; each choice has its index."""
    answer: dict[str, Any] = given.model_dump(mode="json")
    choices = [{**choice, "index": choice.get("index") or 0} for choice in answer["choices"]]
    for said in (answer, *choices):
        check_alternatives(said)
    return {**answer, "choices": choices}


def _context(call: Call, index: int | None) -> str:
    """The text before a choice, or before what stands beside all of them."""
    if index is None:
        return "\n".join(call.contexts)
    if not 0 <= index < call.choices:
        raise RefusedRequest(502, "upstream_not_understood", "a choice that was not asked for")
    return call.context(index)


def _not_read(what: str) -> RefusedRequest:
    return RefusedRequest(
        422, "cannot_be_scored", f"{what} is not read by this guardrail, only chat and completions"
    )
