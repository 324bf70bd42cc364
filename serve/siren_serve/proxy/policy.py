"""What is asked of the guard, what follows from its verdict, and what where it has none."""

from collections.abc import Awaitable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio

from siren_runtime.errors import SirenError
from siren_runtime.scoring.call import Text
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.serving.asynchronous import AsyncStream
from siren_runtime.streaming.result import StreamResult
from siren_serve import logs
from siren_serve.errors import RefusedRequest, refused
from siren_serve.guards import Served
from siren_serve.metrics import Metrics
from siren_serve.openai_form import harm, verdict_to_dict
from siren_serve.opening import gathered_by, reads_anew
from siren_serve.settings import ProxySettings

_T = TypeVar("_T")
# Characters of an answer that are read at once: at most, and of the shortest windows.
_PART, _LEAST_PART = 256, 32
_CHARACTERS_A_TOKEN = 3  # of most texts, at least


@dataclass(frozen=True)
class Unscored:
    """No verdict, and `--fail-open` lets the text through. `code` is the error's."""

    code: str


Verdict = ScoreResult | StreamResult | Unscored


class Policy:
    """A guard, and what a proxy was told to do with its verdicts."""

    def __init__(
        self, served: Served, settings: ProxySettings, metrics: Metrics, timeout_s: float
    ) -> None:
        self.served, self.settings = served, settings
        self._metrics, self._timeout_s = metrics, timeout_s
        guard = served.guard.guard
        self._reads_anew, self._spans = reads_anew(guard), guard.judge.limits.spans or ()
        self.stride = gathered_by(guard, settings.stride)

    def parts(self, text: str) -> list[str]:
        """A text in the parts that are read one after the other, each with a verdict.

        Harm in the middle of a long piece is seen by then, wherever the upstream cuts its chunks.
        One that is too large for the guard stays whole, and is refused by it.
        """
        if len(text) > self.served.guard.guard.judge.limits.max_bytes:
            return [text]
        size = max(self.stride, _PART)
        if self.settings.aggregation != "mean":  # no more tokens than it looks back over
            size = max(min(size, self.settings.span), _LEAST_PART)
        return in_parts(text, size)

    def reads_ahead(self, prompt: str) -> bool:
        """Whether a stream is to read its prompt before there is an answer: it keeps what it made
        of it. Where text is read anew that is the scores of spans, which a short prompt lacks.
        """
        if self._reads_anew:
            return len(prompt) > _CHARACTERS_A_TOKEN * min(self._spans, default=len(prompt))
        return bool(prompt)

    @property
    def blocks(self) -> bool:
        """Whether harmful text is kept back."""
        return self.settings.mode == "block"

    async def score(self, what: str, texts: Sequence[Text]) -> list[Verdict]:
        """Score whole texts; `what` they are goes into the log.

        Raises:
            RefusedRequest: one has no verdict, and nothing is let through for that.
        """
        if not texts:
            return []
        scoring = self.served.score_all(
            list(texts), threshold=self.settings.threshold, deadline=self._timeout_s
        )
        results = await self._attempt(what, scoring)
        if isinstance(results, Unscored):
            return [results] * len(texts)
        for result in results:
            self._note(what, result)
        return list(results)

    def stream(self, prompt: str) -> AbstractAsyncContextManager[AsyncStream]:
        """A stream of the guard, as `Served.stream`."""
        settings = self.settings
        return self.served.stream(
            prompt,
            threshold=settings.threshold,
            response_only=settings.response_only,
            aggregation=settings.aggregation,
            span=settings.span,
        )

    async def read(self, stream: AsyncStream, text: str, *, noted: bool, last: bool) -> Verdict:
        """Score a growing answer with a piece more.

        Args:
            last: whether it ends with the piece.
            noted: whether its harm was told of before.

        Raises:
            RefusedRequest: as `score`.
        """
        result = await self._attempt("answer", stream.feed(text, last=last))
        if isinstance(result, StreamResult) and not noted:
            self._note("answer", result)
        return result

    def may_pass(self, verdict: Verdict) -> bool:
        """Whether text of this verdict goes out."""
        return not (self.blocks and is_harmful(verdict))

    def annotation(self, verdict: Verdict | None) -> dict[str, Any] | None:
        """What is written beside a text: its verdict where it is asked for, and always that it
        has none.
        """
        if isinstance(verdict, Unscored):
            return {"failed_open": verdict.code}
        if verdict is None or self.settings.mode != "annotate":
            return None
        return _told(verdict)

    def no_verdict(self, what: str, error: Exception) -> Unscored:
        """Let text through that cannot be scored, if that is what was asked for.

        Raises:
            RefusedRequest: it was not.
        """
        if isinstance(error, TimeoutError):
            error = RefusedRequest(504, "timeout", f"no verdict within {self._timeout_s:g} s")
        refusal = refused(error)
        if not self.settings.fail_open:
            raise refusal from error
        self._metrics.failed_open.labels(what, refusal.code).inc()
        logs.alarm("FAILED OPEN: text without a verdict goes through", what=what, code=refusal.code)
        return Unscored(refusal.code)

    async def _attempt(self, what: str, scoring: Awaitable[_T]) -> _T | Unscored:
        try:
            with anyio.fail_after(self._timeout_s):  # wait_for may swallow who cancels us
                return await scoring
        except (SirenError, RefusedRequest, TimeoutError) as error:
            return self.no_verdict(what, error)

    def _note(self, what: str, result: ScoreResult | StreamResult) -> None:
        if not is_harmful(result):
            return
        mode = self.settings.mode
        self._metrics.harmful.labels(what, mode).inc()
        logs.event("harmful", what=what, mode=mode, **_told(result))


def _told(verdict: ScoreResult | StreamResult) -> dict[str, Any]:
    tier = {} if verdict.tier is None else {"tier": verdict.tier}
    return verdict_to_dict(verdict, **tier)


def is_harmful(verdict: Verdict) -> bool:
    """Whether it is, or is not known well enough to be called safe."""
    return not isinstance(verdict, Unscored) and verdict.is_harmful is not False


def worst_of(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    """The one that ranks first: what has no verdict, then what is harmful."""
    return max((v for v in verdicts if v is not None), key=_harm, default=None)


def _harm(verdict: Verdict) -> tuple[bool, bool, float]:
    if isinstance(verdict, Unscored):
        return True, True, 1.0
    return False, *harm(verdict)


def in_parts(text: str, size: int) -> list[str]:
    """Cut a text into parts of at most so many characters, within a word only where none ends."""
    parts, start = list[str](), 0
    while start < len(text):
        end = start + size
        space = text.rfind(" ", start + max(size // 2, 1), end) if end < len(text) else -1
        end = end if space < 0 else space
        parts.append(text[start:end])
        start = end
    return parts
