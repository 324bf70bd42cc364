"""One choice of a streamed answer: what came, how far it was read, and what may go out."""

from collections.abc import Awaitable, Callable
from typing import Any

from siren_runtime.serving.asynchronous import AsyncStream
from siren_serve.errors import RefusedRequest
from siren_serve.openai_form import FILTERED

from .policy import Policy, Unscored, Verdict, is_harmful, worst_of
from .texts import MOST_STREAMS, Joined

Chunk = dict[str, Any]

_OF_EVERY_CHUNK = ("id", "object", "created", "model", "system_fingerprint")


class _Reader:
    """A stream of the guard, what it is to read, and what it said last."""

    def __init__(self, stream: AsyncStream | Unscored, policy: Policy) -> None:
        self._stream, self._policy = stream, policy
        self.verdict: Verdict | None = stream if isinstance(stream, Unscored) else None
        self.text = ""
        self._tokens: int | None = None
        self._has_ended = False

    async def read(self, *, noted: bool, last: bool) -> int:
        """Read what there is, if there is any; errors as `Policy.read`.

        Args:
            noted: whether the choice's harm was told of before.
            last: whether the text ends with it.

        Returns:
            how many tokens came behind those of the times before.
        """
        text, self.text = self.text, ""
        if isinstance(self._stream, Unscored) or isinstance(self.verdict, Unscored):
            return 0  # what came before is unknown, so no verdict can follow
        parts = self._policy.parts(text)
        if last and not parts and self.verdict is not None and not self._has_ended:
            parts = [""]
        before = self._tokens
        worst: Verdict | None = None
        for number, part in enumerate(parts, 1):
            self._has_ended = last and number == len(parts)
            noted = noted or worst is not None
            self.verdict = await self._policy.read(
                self._stream, part, noted=noted, last=self._has_ended
            )
            if isinstance(self.verdict, Unscored):
                return 0
            self._tokens = self.verdict.tokens
            if is_harmful(self.verdict):
                worst = self.verdict
                if self._policy.blocks:
                    break
        self.verdict = worst or self.verdict
        return 0 if before is None or self._tokens is None else self._tokens - before


class Choice:
    """Chunks of one choice in, those that may go out out, in their order.

    A chunk goes out when all text up to its end has a verdict, and `holdback` tokens after it too.
    An escape of arguments that has not all of its digits says nothing yet, so it may go.
    """

    def __init__(
        self,
        stream: AsyncStream | Unscored,
        another: Callable[[], Awaitable[AsyncStream | Unscored]],
        policy: Policy,
    ) -> None:
        """Read a choice by a stream of its own, and by `another` where `Joined` asks for more."""
        self._readers, self._another = [_Reader(stream, policy)], another
        self._policy, self._joined = policy, Joined(MOST_STREAMS)
        self._came: list[Chunk] = []  # and is not read
        self._held: list[tuple[int, Chunk]] = []  # read up to a token
        self._tokens = 0
        self.begun = self.cut = self.finished = False

    @property
    def waits(self) -> bool:
        """Whether there is text that was not read."""
        return any(reader.text for reader in self._readers)

    @property
    def _verdict(self) -> Verdict | None:
        return worst_of(reader.verdict for reader in self._readers)

    async def take(self, chunk: Chunk) -> list[Chunk]:
        """Take a chunk that has this choice alone.

        Raises:
            RefusedRequest: it has no verdict.
        """
        choice, self.begun = chunk["choices"][0], True
        if not isinstance(self._verdict, Unscored):
            await self._add(choice)
        self._came.append(chunk)
        self.finished = self.finished or choice.get("finish_reason") is not None
        gathered = max(len(reader.text) for reader in self._readers)  # one text may wait for two
        enough = self._verdict is None or gathered >= self._policy.stride
        return await self.read() if self.finished or enough or not self.waits else []

    async def _add(self, choice: Chunk) -> None:
        try:
            added = self._joined.add(choice)
        except RefusedRequest as error:
            self._readers = [_Reader(self._policy.no_verdict("answer", error), self._policy)]
            return
        for number, text in added.items():
            if number == len(self._readers):
                self._readers.append(_Reader(await self._another(), self._policy))
            self._readers[number].text += text

    async def read(self, *, to_end: bool = False) -> list[Chunk]:
        """Read what came; `to_end` if nothing more does.

        Raises:
            RefusedRequest: as `take`.
        """
        came = 0  # by the reader that moved most: one text may be read by two
        for reader in self._readers:
            verdict = self._verdict
            noted = verdict is not None and is_harmful(verdict)
            came = max(came, await reader.read(noted=noted, last=self.finished))
            if reader.verdict is not None and not self._policy.may_pass(reader.verdict):
                return [self._cut()]
        self._tokens += came
        self._held += [(self._tokens, self._annotated(chunk)) for chunk in self._came]
        self._came = []
        limit = self._tokens - (0 if self._is_over(to_end) else self._policy.settings.holdback)
        count = sum(tokens <= limit for tokens, _ in self._held)
        going, self._held = self._held[:count], self._held[count:]
        return [chunk for _, chunk in going]

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
