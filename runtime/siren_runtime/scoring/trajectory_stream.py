"""A trajectory as it goes on: each turn pays for its new tokens."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from siren_runtime.errors import BackendError, InputError, SirenError
from siren_runtime.streaming.growing_text import Tokens
from siren_runtime.streaming.state import StreamState
from siren_runtime.text.deadline import Deadline
from siren_runtime.text.reading import Reading
from siren_runtime.text.trajectory import Trajectory, trajectory_of

from .call import Call
from .result import ScoreResult
from .scorer import Scorer
from .text_score import TextScore
from .verdict import Judge


@dataclass(frozen=True)
class TrajectoryResult(ScoreResult):
    """The verdict on a trajectory so far, and what it cost.

    Attributes:
        computed: tokens that were run through the engine for it, of all members.
        rolled_back: tokens read before that stand no more: the template wrote what came before in
            another way, or the end of a long trajectory moved.
    """

    computed: int = 0
    rolled_back: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As `ScoreResult.to_dict`, and what it cost."""
        cost = {"computed": self.computed, "rolled_back": self.rolled_back}
        return super().to_dict() | cost


class TrajectoryStream:
    """One growing trajectory, which `Guard.stream_trajectory` opens. Threads must not share it.

    After an error of the engine, and after a feed that was interrupted while it read, it has no
    verdict until it is reset. A message that is refused leaves it as it was.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        judge: Judge,
        tools: Sequence[Mapping[str, Any]] | None,
        call: Call,
    ) -> None:
        """Open a stream.

        Args:
            tools: that the agent has.
            call: the threshold and the limits.

        Raises:
            InputError: the bundles score texts.
            BackendError: the guard is closed, or a streaming graph cannot be opened.
        """
        self._judge, self._tools, self._call = judge, tools, call
        self._tracks = [_Track(scorer) for scorer in scorers]
        self.messages: list[Mapping[str, Any]] = []
        self.result: TrajectoryResult | None = None
        self._error: SirenError | None = None
        self._is_open = True

    @property
    def reads_anew(self) -> list[str]:
        """Why each verdict reads all of the trajectory; empty where it does not."""
        return [track.why for track in self._tracks if track.why is not None]

    def feed(
        self,
        *messages: Mapping[str, Any],
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> TrajectoryResult:
        """Add messages and score all so far.

        Args:
            deadline, cancel: as `Guard.score`.

        Raises:
            InputError: as `Guard.score_trajectory`; the messages are not added.
            BackendError: the engine failed, now or before.
            InterruptedCall: the deadline passed, or the call was cancelled. If that was while the
                engine read, the stream has no verdict until it is reset.
        """
        return self.score([*self.messages, *messages], deadline=deadline, cancel=cancel)

    def score(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> TrajectoryResult:
        """Score messages in the place of those so far; what both begin with is not read again.

        Args:
            deadline, cancel: as `feed`.

        Raises:
            InputError, BackendError, InterruptedCall: as `feed`.
        """
        until = Deadline(deadline, cancel)
        self._check_open()
        if self._error is not None:
            raise BackendError(
                f"the stream failed before and has no verdict ({self._error}); reset it"
            )
        trajectory = trajectory_of(messages=messages, tools=self._tools)
        readings = [track.reading(trajectory, self._call, until) for track in self._tracks]
        self._error = BackendError("a feed was interrupted")  # until all is read
        try:
            scored = [
                track.read(reading, until)
                for track, reading in zip(self._tracks, readings, strict=True)
            ]
        except SirenError as error:
            self._error = error
            raise
        self._error = None
        (verdict,) = self._judge.verdicts([[one] for one in scored], self._call)
        if isinstance(verdict, SirenError):
            raise verdict
        self.messages = list(messages)
        self.result = TrajectoryResult(
            **{field.name: getattr(verdict, field.name) for field in fields(verdict)},
            computed=sum(track.computed for track in self._tracks),
            rolled_back=sum(track.rolled_back for track in self._tracks),
        )
        return self.result

    def reset(self) -> None:
        """Forget all messages, and an error.

        Raises:
            BackendError: the stream is closed.
        """
        self._check_open()
        for track in self._tracks:
            track.begin()
        self.messages, self.result, self._error = [], None, None

    def close(self) -> None:
        """Free the memory. It may be closed again."""
        if self._is_open:
            for track in self._tracks:
                track.close()
        self._is_open = False

    def _check_open(self) -> None:
        if not self._is_open:
            raise BackendError("the stream is closed; open another")

    def __enter__(self) -> "TrajectoryStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Track:
    """What one member has read of a trajectory."""

    def __init__(self, scorer: Scorer) -> None:
        self._texts, self._scorer = scorer.trajectory_reader, scorer
        self._reader, self.why = scorer.stream_reader(None)
        self.computed = self.rolled_back = 0
        self._state = StreamState(scorer.manifest.pooled, None)
        self._reader.add(self._state)

    def begin(self) -> None:
        self.close()
        self._state = StreamState(self._scorer.manifest.pooled, None)
        self._reader.add(self._state)

    def close(self) -> None:
        self._reader.remove(self._state)

    def reading(self, trajectory: Trajectory, call: Call, deadline: Deadline) -> Reading:
        """What is read of a trajectory.

        Raises:
            InputError: as `TrajectoryReader.read`, or a plan of streams holds fewer tokens.
            InterruptedCall: as there.
        """
        reading = self._texts.read(trajectory, call.limits, deadline)
        tokens, held = len(reading.windows[0].ids), self._reader.max_tokens
        if tokens > held:
            raise InputError(
                f"the trajectory is read by {tokens:,} tokens, and streams hold {held:,} here; "
                "score it as a whole (score_trajectory), or compile a plan for longer streams"
            )
        return reading

    def read(self, reading: Reading, deadline: Deadline) -> TextScore:
        """Read what of a trajectory's tokens is new.

        Raises:
            BackendError: the engine failed, or gave what is not finite.
            InterruptedCall: the deadline passed, or the call was cancelled.
        """
        reader, state, ids = self._reader, self._state, reading.windows[0].ids
        tokens = Tokens(ids, [(0, 0)] * len(ids))
        self.rolled_back = state.set_tokens(tokens, reader.max_tokens, reader.usable)
        anew = self.why is not None and state.changed
        self.computed = len(ids) if anew else len(state.pending)
        if error := reader.read({state: deadline}).get(state):
            raise error
        row = state.readouts[-1]
        assert row is not None  # a head of the last token is read at each
        return TextScore(
            heads=self._scorer.readout.heads(row),
            features=row[:0],
            tokens=reading.tokens,
            truncated=reading.truncated,
            unknown=reading.unknown,
            omitted=reading.omitted,
            unread=reading.unread,
        )
