"""A guard that threads share: their calls are scored together."""

from collections.abc import Callable, Iterable
from typing import Any

from siren_runtime.errors import SirenError
from siren_runtime.guard import Guard
from siren_runtime.scoring.call import Text, passages_of, raised, trajectories_of
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.text.passage import make_passage

from .dispatcher import Dispatcher
from .pending import PendingCall, Results
from .sharing import DEFAULT_SHARING, Run, Sharing, ignore


class SharedGuard:
    """Scores as a guard does, for many threads at once: what waits shares the next engine run.

        with SharedGuard(Guard.load("minilm", threads=1)) as guard:
            guard.score("…")             # from any number of threads

    A score is that of `Guard.score` up to the rounding that another batch brings.
    """

    def __init__(
        self,
        guard: Guard,
        sharing: Sharing = DEFAULT_SHARING,
        on_run: Callable[[Run], None] = ignore,
    ) -> None:
        """Share `guard`, which stays its owner's to close; arguments as `Dispatcher`."""
        self.guard = guard
        self.dispatcher = Dispatcher(guard, sharing, on_run)

    def score(
        self,
        text: str | None = None,
        *,
        prompt: str | None = None,
        response: str | None = None,
        **settings: Any,
    ) -> ScoreResult:
        """Score one text, or a prompt and its response, as `Guard.score`.

        Args:
            settings: threshold, features, long_text, spans, deadline, cancel and order, as
                `Guard.score`.

        Raises:
            BusyError: too much waits already; nothing was scored.
            SirenError: as `Guard.score`.
        """
        call = self.guard.call(**settings)
        with self.dispatcher.admitted():
            passage = make_passage(text, prompt, response, max_bytes=call.limits.max_bytes)
            (result,) = self._answer(PendingCall(self.guard, [passage], call))
        if isinstance(result, SirenError):
            raise result
        return result

    def score_batch(self, texts: Iterable[Text], **settings: Any) -> list[ScoreResult]:
        """Score many texts, as `Guard.score_batch`; settings and errors as `score`."""
        return raised(self.score_each(texts, **settings))

    def score_each(self, texts: Iterable[Text], **settings: Any) -> list[ScoreResult | SirenError]:
        """Score many texts, as `Guard.score_each`; settings and errors as `score`."""
        call = self.guard.call(**settings)
        with self.dispatcher.admitted():
            passages = passages_of(texts, "score_each", call)
            return self._answer(PendingCall(self.guard, passages, call))

    def score_each_trajectory(
        self, trajectories: Iterable[Any], **settings: Any
    ) -> list[ScoreResult | SirenError]:
        """Score what agents did, as `Guard.score_each_trajectory`; settings as `score`."""
        call = self.guard.call(**settings)
        with self.dispatcher.admitted():
            given = trajectories_of(trajectories, "score_each_trajectory")
            return self._answer(PendingCall(self.guard, given, call))

    def close(self) -> None:
        """Answer what waits, and end."""
        self.dispatcher.close()

    def __enter__(self) -> "SharedGuard":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _answer(self, pending: PendingCall) -> Results:
        self.dispatcher.submit(pending)
        try:
            return pending.future.result()
        except BaseException:
            pending.future.cancel()  # a signal's handler raised: nobody waits any more
            raise
