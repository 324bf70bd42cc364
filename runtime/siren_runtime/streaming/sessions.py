"""Sessions over growing texts, which are read together.

A session of an ensemble is read by every member, and its score is the mean of theirs. Its tokens
are the first member's; the others' scores count at the same places of the text.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from siren_runtime.errors import BackendError, InputError, SirenError
from siren_runtime.text.deadline import NO_DEADLINE, Deadline
from siren_runtime.text.passage import check_size
from siren_runtime.text.reading import Limits

from .aggregation import Aggregation
from .decision import Cutoffs, Rule
from .reader import Between, nothing
from .result import StreamResult, TokenScore
from .session import Decide, Session
from .track import Member, Track

# A piece, text or token ids, the deadline until which it is read, and whether it is the last.
Feeding = tuple[Session, Any, Deadline, bool]


class Sessions:
    """Opens sessions and reads what they were fed together. Not safe to share between threads."""

    def __init__(
        self,
        members: Sequence[Member],
        max_sessions: int | None,
        decide: Decide,
        limits: Limits,
        cutoffs: Cutoffs | None = None,
    ) -> None:
        """Begin with no session.

        Args:
            cutoffs: of exits that may decide; None: there are none.
        """
        self.members = tuple(members)
        self._max_sessions, self._decide, self._limits = max_sessions, decide, limits
        self._cutoffs = cutoffs
        self._runs_for_spans = bool(limits.spans) and any(one.head is None for one in members)
        self._open: dict[Session, None] = {}

    @property
    def bytes(self) -> int:
        """Memory that all open sessions take now."""
        return sum(map(self.bytes_of, self._open))

    def bytes_of(self, session: Session) -> int:
        """Memory that one session takes now."""
        return sum(track.member.reader.bytes_of(track.state) for track in session.tracks)

    def open(
        self,
        prompt: str | None,
        response_only: bool,
        aggregation: Aggregation | None,
        rules: Sequence[Rule],
        threshold: float | None,
    ) -> Session:
        """Open a session.

        Raises:
            InputError: as many are open as may be, the prompt is larger than is read, or a member
                cannot read it in this way.
        """
        check_size(prompt or "", self._limits.max_bytes)
        plain = aggregation is None and not response_only
        if not plain and any(member.reads_anew for member in self.members):
            raise InputError(
                "this bundle has no streaming graph, so a stream re-encodes its text, which "
                "allows neither response_only nor another aggregation than the mean"
            )
        if self._max_sessions is not None and len(self._open) >= self._max_sessions:
            raise InputError(f"{self._max_sessions} streams are open; close one first")
        sizes = (self._limits.spans or ()) if aggregation is None else ()
        early = (
            plain
            and not sizes
            and self._cutoffs is not None
            and self._cutoffs.suffice(threshold, rules)
            and all(member.readout.smoothing is None for member in self.members)
        )
        how = prompt, response_only, aggregation, early, bool(rules), sizes
        tracks = [Track(member, *how) for member in self.members]
        session = Session(tracks, rules, threshold, prompt, self._decide, self._limits)
        self._open[session] = None
        return session

    def token_scores(self, session: Session) -> list[TokenScore]:
        """As `Session.token_scores`, all of the whole guard: it reads what waits behind an exit.

        Raises:
            BackendError: the engine failed.
        """
        state = session.tracks[0].state
        if state.exit is not None:
            state.to_end = True
            for error in self.members[0].reader.read({state: NO_DEADLINE}).values():
                session.error = error
                raise error
        return session.token_scores()

    def close(self, session: Session) -> None:
        """Free a session's memory."""
        if session in self._open:
            del self._open[session]
            for track in session.tracks:
                track.close()

    def feed(
        self, pieces: Iterable[Feeding], between: Between = nothing
    ) -> dict[Session, StreamResult | SirenError]:
        """Feed each session its piece and read them together, each until its deadline; one that
        fails leaves the others right.

        Args:
            pieces: of a session each.
            between: called between two engine runs; it may open, feed and close other sessions.
        """
        waiting: dict[Session, list[Any]] = {}
        found: dict[Session, list[StreamResult]] = {}
        failures: dict[Session, SirenError] = {}
        ended, empty = set[Session](), set[Session]()
        for session, piece, deadline, is_last in pieces:
            found[session] = []
            try:
                waiting[session] = self._parts(session, piece, deadline)
            except SirenError as error:
                failures[session] = error
            if is_last:
                ended.add(session)
            if session in waiting and not waiting[session][0]:
                empty.add(session)
        while waiting:
            if any(found.values()):
                between()
            turn = {session: parts.pop(0) for session, parts in waiting.items()}
            read = self._read_parts(turn, ended, waiting, between)
            for session, result in read.items():
                if isinstance(result, SirenError):
                    failures[session] = result
                else:
                    found[session].append(result)
            waiting = {s: parts for s, parts in waiting.items() if parts and s not in failures}
        return {
            session: failures.get(session)
            or session.conclude_parts(results, is_empty=session in empty)
            for session, results in found.items()
        }

    def _parts(self, session: Session, piece: Any, deadline: Deadline) -> list[Any]:
        """As `Session.parts`; until all are read, the session counts as one whose feed failed.

        Raises:
            BackendError: the session failed before.
            InputError: it is not of these, or as `Session.parts`.
            InterruptedCall: as `Session.parts`.
        """
        session.check_usable()
        if session not in self._open:
            raise InputError("the stream was opened elsewhere")
        session.error = BackendError("a feed was interrupted")
        try:
            return session.parts(piece, deadline)
        except SirenError as error:
            session.error = error
            raise

    def _read_parts(
        self,
        parts: Mapping[Session, Any],
        ended: Collection[Session],
        waiting: Mapping[Session, Sequence[Any]],
        between: Between,
    ) -> dict[Session, StreamResult | SirenError]:
        """Read a part of each session's piece, together.

        Args:
            ended: those whose text ends with the piece.
            waiting: the parts that come after.
        """
        results: dict[Session, StreamResult | SirenError] = {}
        busy = []
        for session, part in parts.items():
            try:
                session.accept(part)
                busy.append(session)
            except SirenError as error:  # noqa: PERF203 - each stream has its own
                results[session] = session.error = error
        last = len(self.members) - 1
        for number in range(last, -1, -1):  # the first goes by the others' scores
            if number < last:
                between()
            failures = self._read(number, busy, between)
            results |= failures
            busy = [session for session in busy if session not in failures]
        for place, session in enumerate(busy):
            if place and self._runs_for_spans:
                between()
            try:
                is_part = bool(waiting[session])
                is_end = session in ended and not is_part
                results[session] = session.conclude(ended=is_end, is_part=is_part)
            except SirenError as error:
                results[session] = session.error = error
        return results

    def _read(
        self, number: int, sessions: Sequence[Session], between: Between
    ) -> dict[Session, SirenError]:
        """Read all that is pending of one member's tracks; return the sessions that failed."""
        reader = self.members[number].reader
        failures: dict[Session, SirenError] = {}
        busy = list(sessions)
        while busy:
            states = {session.tracks[number].state: session.deadline for session in busy}
            failed = reader.read(states, between)
            going_on = []
            for session in busy:
                try:
                    error = failed.get(session.tracks[number].state)
                    if error is None and session.slide(number):
                        going_on.append(session)
                except SirenError as cause:
                    error = cause
                if error is not None:
                    failures[session] = session.error = error
            busy = going_on
            if busy:
                between()
        return failures
