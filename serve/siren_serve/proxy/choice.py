"""One choice of a streamed answer: what came, how far it was read, and what may go out."""

from typing import Any

from siren_runtime.serving.asynchronous import AsyncStream
from siren_serve.errors import RefusedRequest
from siren_serve.openai_form import FILTERED

from .policy import Policy, Unscored, Verdict, is_harmful
from .texts import Joined

Chunk = dict[str, Any]

_OF_EVERY_CHUNK = ("id", "object", "created", "model", "system_fingerprint")


class Choice:
    """Chunks of one choice in, those that may go out out, in their order.

    A chunk goes out when all text up to its end has a verdict, and `holdback` tokens after it too.
    An escape of arguments that has not all of its digits says nothing yet, so it may go.
    """

    def __init__(self, stream: AsyncStream | Unscored, policy: Policy) -> None:
        """Read a choice by a stream of its own, where there is one."""
        self._stream, self._policy = stream, policy
        self._joined, self._text = Joined(), ""
        self._came: list[Chunk] = []  # and is not read
        self._held: list[tuple[int, Chunk]] = []  # read up to a token
        self._verdict: Verdict | None = stream if isinstance(stream, Unscored) else None
        self._tokens = 0
        self.cut = self.finished = False

    @property
    def waits(self) -> bool:
        """Whether there is text that was not read."""
        return bool(self._text)

    async def take(self, chunk: Chunk) -> list[Chunk]:
        """Take a chunk that has this choice alone.

        Raises:
            RefusedRequest: it has no verdict.
        """
        choice = chunk["choices"][0]
        try:
            self._text += self._joined.add(choice)
        except RefusedRequest as error:
            self._verdict = self._policy.no_verdict("answer", error)
        self._came.append(chunk)
        self.finished = choice.get("finish_reason") is not None
        enough = len(self._text) >= self._policy.stride or self._verdict is None
        return await self.read() if self.finished or enough or not self._text else []

    async def read(self, *, to_end: bool = False) -> list[Chunk]:
        """Read what came; `to_end` if nothing more does.

        Raises:
            RefusedRequest: as `take`.
        """
        if self._text:
            await self._score()
        if self._verdict is not None and not self._policy.may_pass(self._verdict):
            return [self._cut()]
        self._held += [(self._tokens, self._annotated(chunk)) for chunk in self._came]
        self._came = []
        limit = self._tokens - (0 if self._is_over(to_end) else self._policy.settings.holdback)
        count = sum(tokens <= limit for tokens, _ in self._held)
        going, self._held = self._held[:count], self._held[count:]
        return [chunk for _, chunk in going]

    async def _score(self) -> None:
        text, self._text = self._text, ""
        if isinstance(self._verdict, Unscored) or isinstance(self._stream, Unscored):
            return  # what came before is unknown, so no verdict can follow
        worst: Verdict | None = None
        for part in self._policy.parts(text):
            noted = self._verdict is not None and is_harmful(self._verdict)
            self._verdict = await self._policy.read(self._stream, part, noted=noted or bool(worst))
            if isinstance(self._verdict, Unscored):
                return
            self._tokens = self._verdict.tokens
            if is_harmful(self._verdict):
                worst = self._verdict
                if self._policy.blocks:
                    return
        self._verdict = worst or self._verdict

    def _is_over(self, to_end: bool) -> bool:
        return to_end or self.finished or isinstance(self._verdict, Unscored)

    def _annotated(self, chunk: Chunk) -> Chunk:
        annotation = self._policy.annotation(self._verdict)
        if annotation is None:
            return chunk
        return {**chunk, "choices": [{**chunk["choices"][0], "siren": annotation}]}

    def _cut(self) -> Chunk:
        """End the choice: a last chunk without text, and nothing of what was held."""
        last = self._came[-1]
        self._came, self._held, self.cut = [], [], True
        choice = last["choices"][0]
        empty: dict[str, Any] = {"text": ""} if "text" in choice else {"delta": {}}
        ended = {"index": choice.get("index", 0), **empty, "finish_reason": FILTERED}
        return {**{k: last[k] for k in _OF_EVERY_CHUNK if k in last}, "choices": [ended]}
