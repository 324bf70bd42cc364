"""A call whose texts are read and wait to be scored."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from siren_runtime.errors import BackendError, InterruptedCall, SirenError
from siren_runtime.guard import Guard
from siren_runtime.scoring.call import Call, Given
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.scoring.scorer import WindowKey, windows_of
from siren_runtime.scoring.windows import Scored
from siren_runtime.text.reading import Window

from .answers import fail, settle

Results = list[ScoreResult | SirenError]


class PendingCall:
    """The texts or trajectories of one call, tokenized by each member, and what is known of their
    windows so far.

    One thread at a time may use it, but for `future`, whose `cancel` says that the caller has gone.
    """

    def __init__(self, guard: Guard, given: Sequence[Given | SirenError], call: Call) -> None:
        """Tokenize; no engine runs yet.

        Raises:
            InterruptedCall: the call's deadline passed, or it was cancelled.
        """
        self.call = call
        self.future: Future[Results] = Future()
        self._judge, self._scorers, self._given = guard.judge, guard.scorers, given
        reading = given, call.limits, call.deadline
        self._readings = [scorer.encode(*reading) for scorer in guard.scorers]
        self.windows: list[dict[WindowKey, Window]] = [windows_of(r) for r in self._readings]
        self.tokens = sum(len(w.ids) for windows in self.windows for w in windows.values())
        self._scored: list[dict[WindowKey, Scored | BackendError]] = [{} for _ in self.windows]
        self._total = sum(map(len, self.windows))
        self._left = self._total

    def has_ended(self) -> bool:
        """Whether nobody waits for it any more: the caller has gone, or its time is up."""
        if self.future.done():
            return True
        try:
            self.check()
        except InterruptedCall as error:
            self.fail(error)
        return self.future.done()

    def check(self) -> None:
        """Go on, or raise.

        Raises:
            InterruptedCall: nobody waits for it any more.
        """
        if self.future.done():
            raise InterruptedCall("the caller has gone")
        self.call.deadline.check(f"after {self._total - self._left} of {self._total} engine runs")

    def take(self, member: int, scored: Mapping[WindowKey, Scored | BackendError]) -> None:
        """Add what a member's engine made of some windows; the last of them answers the call."""
        self._scored[member] |= scored
        self._left -= len(scored)
        self.answer_if_done()

    def answer_if_done(self) -> None:
        """Answer a call of which no window is left, such as one whose texts are all refused."""
        if not self._left:
            settle(self.future, self._results)

    def fail(self, error: BaseException) -> None:
        """Answer with an error, if it is not answered yet."""
        fail(self.future, error)

    def _results(self) -> Results:
        by_member = [
            scorer.text_scores(self._given, readings, scored)
            for scorer, readings, scored in zip(
                self._scorers, self._readings, self._scored, strict=True
            )
        ]
        return self._judge.verdicts(by_member, self.call)
