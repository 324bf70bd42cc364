"""A grafted generator: opened once, and a chat completion answered and guarded in one pass."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio.to_thread
import msgspec

from siren_runtime.backends.verdicts import categories_to_dict, heads_to_dict, reason_of
from siren_runtime.errors import InputError, SirenError
from siren_runtime.generation.generation import Generation, Piece
from siren_runtime.generation.generator import GuardedGenerator
from siren_runtime.generation.manifest import load_manifest
from siren_runtime.generation.sampling import Sampling
from siren_runtime.streaming.result import StreamResult

from . import logs
from .errors import RefusedRequest, body_of, refused
from .guards import told_decision
from .messages import Message, joined, text_of_part
from .metrics import Metrics
from .openai_form import DONE, FILTERED, event, verdict_to_dict
from .openai_moderation import moderation
from .settings import GenerateSettings, Settings

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seed = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]  # what the engine takes
_ROLES = {"developer": "system", "function": "tool"}
_READ = {"role", "content", "cache_control"}  # of a message
# What changes no answer here; without tools nothing that is said of them does.
_BESIDE = {
    *("model", "user", "metadata", "store", "service_tier", "safety_identifier", "request_id"),
    *("prompt_cache_key", "prompt_cache_retention", "tool_choice", "parallel_tool_calls"),
}
_ON = {"skip_special_tokens", "enable_thinking"}  # unless a request says false; vLLM's and Qwen's


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class _Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mode: Literal["score", "block"]


class _Policies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input: _Policy | None = None
    output: _Policy | None = None


class _Moderation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What asks for verdicts in OpenAI's form; of `model` there is one, the generator."""

    model: str
    policy: _Policies | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """What is read of a chat completion's request."""

    messages: list[Message]
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # vLLM's, as is the next
    repetition_penalty: float | None = None
    seed: _Seed | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    continue_final_message: bool | None = None  # vLLM's, as is the next
    add_generation_prompt: bool | None = None
    moderation: _Moderation | None = None


def read_request(body: bytes) -> ChatRequest:
    """Read a request's JSON.

    Raises:
        RefusedRequest: it asks for what is not done here.
        msgspec.DecodeError: it is not in OpenAI's form.
    """
    fields = msgspec.json.decode(body)
    request = msgspec.convert(fields, ChatRequest)
    heard = {*_BESIDE, *ChatRequest.__struct_fields__}
    asked = [name for name, value in fields.items() if value and name not in heard]
    asked += [name for name in sorted(_ON) if fields.get(name) is False]
    if request.n not in (None, 1):
        asked.append("n")
    if request.add_generation_prompt is bool(request.continue_final_message):
        asked.append("add_generation_prompt")  # an answer begins anew, or goes on with a message
    if asked:
        raise RefusedRequest(422, "not_supported", f"{', '.join(asked)}: not supported here")
    policy = request.moderation and request.moderation.policy
    if policy and any(part and part.mode == "score" for part in (policy.input, policy.output)):
        said = "moderation.policy: harm is blocked here, and not only scored"
        raise RefusedRequest(422, "not_supported", said)
    return request


class Generator:
    """The generator of a server. As many generations are under way as guards have engine runs; of
    these they take turns.
    """

    def __init__(self, settings: Settings, generate: GenerateSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = generate, metrics
        self._threads, self._most = settings.threads, settings.max_calls
        self._spans = settings.spans
        self._slots, self._under_way = asyncio.Semaphore(settings.runs), 0
        self._guarded: GuardedGenerator | None = None

    async def load(self) -> None:
        """Open the folder, and generate a token.

        Raises:
            SirenError: it cannot be opened, or its head was not trained on chats.
        """
        started = time.monotonic()
        load = partial(
            GuardedGenerator.load, self.settings.folder, threads=self._threads, spans=self._spans
        )
        trained_on = load_manifest(Path(self.settings.folder)).trained_on
        if trained_on is not None and trained_on.text != "chat":
            raise InputError(
                f"{self.settings.folder}: the head was trained on {trained_on.text} text, and chat "
                "completions stand in the model's chat template, so that each would be refused; "
                "graft a head that siren extract and siren train made without --no-chat"
            )
        self._guarded = await anyio.to_thread.run_sync(load)
        await anyio.to_thread.run_sync(self._warm)
        logs.event("generator loaded", seconds=round(time.monotonic() - started, 3))

    def info(self) -> dict[str, Any]:
        """What it is, as `Served.info` says it of a guard."""
        if self._guarded is None:
            raise RefusedRequest(503, "loading", "the generator is being loaded")
        manifest, asked = self._guarded.manifest, self.settings.threshold
        return {
            "name": self.settings.name,
            "backend": "onnxruntime-genai",
            **told_decision(self._guarded.judge, asked),
            "max_tokens": self.settings.max_tokens,
            "every": self.settings.every,
            "holdback": self.settings.holdback,
            "base_model": manifest.backbone.id,
            "head_base_model": msgspec.to_builtins(manifest.backbone.named),
            "created": manifest.created,
            "versions": dict(manifest.versions),
        }

    def moderation(self, result: StreamResult) -> dict[str, Any]:
        """A verdict as OpenAI's moderated completions have it."""
        assert self._guarded is not None
        model = self.settings.name
        found = moderation(result, self._guarded.manifest.heads)
        one = {"type": "moderation_result", "model": model, **msgspec.to_builtins(found)}
        return {"type": "moderation_results", "model": model, "results": [one]}

    def _warm(self) -> None:
        assert self._guarded is not None
        list(self._guarded.generate("Hello", max_tokens=1))

    @asynccontextmanager
    async def generating(self, request: ChatRequest) -> AsyncIterator[Generation]:
        """Read a request's prompt and judge it; when the block ends, so does the generation.

        Raises:
            RefusedRequest: too many wait, the prompt cannot be read, or it is harmful.
            SirenError: the prompt has no verdict.
        """
        if self._under_way >= self._most:
            raise RefusedRequest(429, "busy", "too many generations wait", {"Retry-After": "1"})
        self._under_way += 1
        cancel = threading.Event()
        try:
            async with self._slots:
                begin = partial(self._begin, request, cancel)
                generation = await anyio.to_thread.run_sync(begin)
                with generation:
                    if generation.finish == "harmful":
                        self._note("prompt", generation.prompt)
                        reason = reason_of(generation.prompt.heads)
                        said = f"the prompt was blocked as harmful: {reason}"
                        raise RefusedRequest(400, FILTERED, said)
                    yield generation
                    if generation.stopped_by is not None:
                        self._note("answer", generation.result)
        finally:
            cancel.set()
            self._under_way -= 1

    def _begin(self, request: ChatRequest, cancel: threading.Event) -> Generation:
        if self._guarded is None:
            raise RefusedRequest(503, "loading", "the generator is being loaded")
        settings = self.settings
        sampling = Sampling(
            request.temperature,
            request.top_p,
            request.top_k,
            request.repetition_penalty,
            request.seed,
        )
        asked = request.max_completion_tokens or request.max_tokens or settings.max_tokens
        return self._guarded.generate(
            [_message(message, place) for place, message in enumerate(request.messages)],
            continue_last=bool(request.continue_final_message),
            max_tokens=min(asked, settings.max_tokens),
            sampling=sampling,
            threshold=settings.threshold,
            every=settings.every,
            holdback=settings.holdback,
            deadline=settings.timeout_s,
            cancel=cancel,
        )

    def _note(self, what: str, result: StreamResult) -> None:
        self.metrics.harmful.labels(what, "block").inc()
        logs.event("harmful", what=what, mode="block", **told(result))


def _message(message: Message, place: int) -> dict[str, str]:
    """A message as the chat template takes it."""
    content = message.content
    if isinstance(content, list):
        content = joined([text_of_part(part) for part in content])
    if content is None:
        raise RefusedRequest(422, "not_supported", f"messages[{place}] has no text")
    fields = msgspec.to_builtins(message)
    unread = [name for name, value in fields.items() if name not in _READ and _says(value)]
    if unread:
        raise RefusedRequest(
            422, "not_supported", f"messages[{place}]: {', '.join(unread)}: not supported here"
        )
    return {"role": _ROLES.get(message.role, message.role), "content": content}


def _says(value: Any) -> bool:
    """Whether JSON says anything: clients send an answer's empty fields back with it."""
    if isinstance(value, dict | list):
        return any(map(_says, value.values() if isinstance(value, dict) else value))
    return value not in (None, "")


def told(result: StreamResult) -> dict[str, Any]:
    """A verdict as it stands beside a text, with categories and further heads where there are."""
    categories = categories_to_dict(result.risk, result.categories, result.flagged)
    return verdict_to_dict(result) | categories | heads_to_dict(result.heads)


class ChatAnswer:
    """The answer to one request, as ASGI has it."""

    def __init__(self, generator: Generator, request: ChatRequest) -> None:
        self._generator, self._request = generator, request
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._has_begun = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Generate and send. Whatever ends it ends the generation too."""
        try:
            async with self._generator.generating(self._request) as generation:
                await (self._stream if self._request.stream else self._whole)(generation, send)
        except (RefusedRequest, SirenError) as error:
            if not self._has_begun:
                raise
            refusal = refused(error)
            self._generator.metrics.refusals.labels(refusal.code).inc()
            # OpenAI's client raises it. No [DONE] follows: the answer is not whole.
            await self._send(send, event(body_of(refusal)), more=False)

    async def _whole(self, generation: Generation, send: Any) -> None:
        text = ""
        while (piece := await _next(generation)) is not None:
            text += piece.text
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": _reason(generation),
            "siren": {**told(generation.result), "prompt": told(generation.prompt)},
        }
        answer = {**self._frame("chat.completion", [choice]), "usage": _usage(generation)}
        answer |= self._moderation(generation)
        await self._begin(send, "application/json")
        await self._send(send, msgspec.json.encode(answer), more=False)

    async def _stream(self, generation: Generation, send: Any) -> None:
        await self._begin(send, "text/event-stream; charset=utf-8")
        first = {"role": "assistant", "content": ""}
        await self._chunk(send, first, {"prompt": told(generation.prompt)})
        while (piece := await _next(generation)) is not None:
            await self._chunk(send, {"content": piece.text}, {"score": piece.score})
        await self._chunk(send, {}, told(generation.result), _reason(generation))
        if found := self._moderation(generation):
            await self._send(send, event({**self._frame("chat.completion.chunk", []), **found}))
        options = self._request.stream_options
        if options is not None and options.include_usage:
            usage = {**self._frame("chat.completion.chunk", []), "usage": _usage(generation)}
            await self._send(send, event(usage))
        await self._send(send, DONE, more=False)

    async def _chunk(
        self, send: Any, delta: dict[str, Any], siren: dict[str, Any], reason: str | None = None
    ) -> None:
        choice = {
            "index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, "siren": siren
        }  # fmt: skip
        await self._send(send, event(self._frame("chat.completion.chunk", [choice])))

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = self._generator.settings.name
        return {
            "id": self._id, "object": kind, "created": self._created, "model": name,
            "choices": choices,
        }  # fmt: skip

    def _moderation(self, generation: Generation) -> dict[str, Any]:
        """The verdicts on prompt and answer as OpenAI's client knows them, where it asked."""
        if self._request.moderation is None:
            return {}
        both = {"input": generation.prompt, "output": generation.result}
        told = {name: self._generator.moderation(result) for name, result in both.items()}
        return {"moderation": told}

    async def _begin(self, send: Any, media_type: str) -> None:
        self._has_begun = True
        headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send(self, send: Any, body: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def _next(generation: Generation) -> Piece | None:
    return await anyio.to_thread.run_sync(partial(next, generation, None))


def _reason(generation: Generation) -> str | None:
    return FILTERED if generation.finish == "harmful" else generation.finish


def _usage(generation: Generation) -> dict[str, int]:
    prompt, written = generation.prompt_tokens, generation.tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }
