"""What the integrations share: a guard opened once for those that want the same, and asked."""

from collections.abc import Awaitable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar

import anyio
import msgspec

from siren_runtime.backends.verdicts import reason_of
from siren_runtime.errors import InterruptedCall, SirenError
from siren_runtime.guard import Guard
from siren_runtime.scoring.call import Text
from siren_runtime.scoring.engines import BackendName
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.serving.asynchronous import AsyncGuard, AsyncStream
from siren_runtime.streaming.aggregation import AggregationName
from siren_runtime.streaming.handles import Stream
from siren_runtime.streaming.result import StreamResult
from siren_runtime.text.reading import LongText
from siren_serve.opening import gathered_by, open_guard, sharing_of
from siren_serve.settings import Settings

_T = TypeVar("_T")
_TIMEOUT_S = 10.0
_NONE: Mapping[str, str] = {}


class SettingsError(SirenError):
    """A guard that cannot be opened as its settings say.

    No ValueError: LiteLLM takes one for a reason to start without the guardrail.
    """


class Blocked(Exception):
    """A text that is harmful, or of which too little is known to call it safe."""


class GuardSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be said of a guard where it is plugged in.

    Attributes:
        bundle: a folder, or what else `Guard.load` takes.
        threshold: harmful from this score, 0 to 1; None is the guard's own.
        stride: characters of a stream that are gathered before it is read again; None is 0 for
            guards that read only what is new, and 40 for those that read all anew.
        response_only, aggregation, span: as `Guard.stream`, of answers that are streamed.
        timeout_s: seconds in which a text, or a piece of a stream, has its verdict.
        backend, threads, runs, long_text, spans, max_text_bytes, max_text_tokens, max_streams,
        max_stream_tokens: as `Settings`.
    """

    bundle: str
    threshold: float | None = None
    stride: Annotated[int, msgspec.Meta(ge=0)] | None = None
    response_only: bool = False
    aggregation: AggregationName = "mean"
    span: int = 64
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = _TIMEOUT_S
    backend: BackendName = "auto"
    threads: int = 1
    runs: int = 1
    long_text: LongText = "windows"
    spans: bool | None = None
    max_text_bytes: int = 256 << 10
    max_text_tokens: int = 16_384
    max_streams: int = 64
    max_stream_tokens: int = 4096


# Those that a guard is opened with; it is shared by those who ask it otherwise.
_OF_GUARD = (set(Settings.__struct_fields__) & set(GuardSettings.__struct_fields__)) - {"timeout_s"}


class Guarding:
    """A guard, and what was said of it."""

    def __init__(self, given: Mapping[str, Any], unused: Mapping[str, str] = _NONE) -> None:
        """Open the guard, or take the one that is open.

        Args:
            given: the fields of `GuardSettings`.
            unused: those that say nothing where the guard is plugged in, and why.

        Raises:
            SettingsError: one is not known or cannot be used, or the guard cannot be opened.
        """
        for name, why in unused.items():
            if name in given:
                raise SettingsError(f"{name}: not a setting here, since {why}")
        try:
            self.settings = msgspec.convert(dict(given), GuardSettings)
            kept = {name: getattr(self.settings, name) for name in _OF_GUARD}
            self._asked = _opened(GuardSettings(bundle=self.settings.bundle, **kept))
            self.guard.score("A text.", threshold=self.settings.threshold)  # and no trajectory
            if self.settings.response_only or self.settings.aggregation != "mean":
                self.stream("").close()  # which not every guard can do
        except msgspec.ValidationError as error:
            raise SettingsError(f"the guard's settings: {error}") from None
        except SirenError as error:
            raise SettingsError(f"the guard {given['bundle']!r}: {error}") from error
        self._stride = gathered_by(self.guard, self.settings.stride)

    @property
    def guard(self) -> Guard:
        """The guard, which others may use too."""
        return self._asked.guard

    async def check(self, texts: Sequence[Text]) -> None:
        """Score whole texts; each a text, or a prompt and its response.

        Raises:
            Blocked: one may not pass.
            SirenError: one has no verdict.
        """
        if texts:
            settings = self.settings
            scoring = self._asked.score_batch(
                texts, threshold=settings.threshold, deadline=settings.timeout_s
            )
            for result in await self.in_time(scoring):
                pass_or_raise(result)

    def reading(self, prompt: str) -> "Reading":
        """Read an answer that grows, behind its prompt, which may be empty; a context."""
        stream = self._asked.stream(prompt, **self._of_stream)
        return Reading(self, stream, self._stride)

    def stream(self, prompt: str) -> Stream:
        """A stream that shares no engine runs with others, for who cannot await; errors as
        `Guard.stream`.
        """
        most = min(self.settings.max_stream_tokens, self.guard.streams().max_tokens)
        return self.guard.stream(prompt, max_tokens=most, **self._of_stream)

    @property
    def _of_stream(self) -> dict[str, Any]:
        names = ("threshold", "response_only", "aggregation", "span")
        return {name: getattr(self.settings, name) for name in names}

    async def in_time(self, asking: Awaitable[_T]) -> _T:
        """Await the guard.

        Raises:
            InterruptedCall: it took too long.
        """
        try:
            with anyio.fail_after(self.settings.timeout_s):
                return await asking
        except TimeoutError:
            raise InterruptedCall(f"no verdict within {self.settings.timeout_s:g} s") from None


class Reading:
    """A text that grows: pieces in, and whether all of them were read out."""

    def __init__(self, guarding: Guarding, stream: AsyncStream, stride: int) -> None:
        """Read by a stream; `Guarding.reading` makes it."""
        self._guarding, self._stream, self._stride = guarding, stream, stride
        self._text, self._has_begun = "", False

    @property
    def is_read(self) -> bool:
        """Whether all text so far has a verdict, and may go out."""
        return not self._text

    async def add(self, text: str) -> None:
        """Take a piece, and read what was gathered if it is enough.

        Raises:
            Blocked: the text so far may not pass.
            SirenError: it has no verdict.
        """
        self._text += text
        if len(self._text) >= self._stride or not self._has_begun:
            await self.read()

    async def read(self, *, last: bool = False) -> None:
        """Read what was gathered, with which the text may end; errors as `add`."""
        if self._text or (last and self._has_begun):
            result = await self._guarding.in_time(self._stream.feed(self._text, last=last))
            self._text, self._has_begun = "", True
            pass_or_raise(result)

    async def __aenter__(self) -> "Reading":
        await self._guarding.in_time(self._stream.__aenter__())
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stream.__aexit__(*exception)


def pass_or_raise(result: ScoreResult | StreamResult) -> None:
    """Raise `Blocked`, with what decided, unless a verdict says harmless."""
    if result.is_harmful is not False:
        raise Blocked(f"blocked as harmful: {reason_of(result.heads)}")


@cache
def _opened(settings: GuardSettings) -> AsyncGuard:
    loading = Settings(guards={}, **{name: getattr(settings, name) for name in _OF_GUARD})
    guard = open_guard(settings.bundle, loading)
    return AsyncGuard(guard, sharing_of(loading))
