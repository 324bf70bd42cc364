"""Sessions over growing texts, one or many: what a piece of text goes through to its verdict.

A session of an ensemble is read by every member, and its score is the mean of theirs. Its tokens
are the first member's; the others' scores count at the same places of the text.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from siren_runtime.backends.readout import HeadText
from siren_runtime.backends.verdicts import HeadScore, categories_of
from siren_runtime.errors import BackendError, InputError, SirenError
from siren_runtime.text.deadline import NO_DEADLINE, Deadline
from siren_runtime.text.passage import check_size
from siren_runtime.text.reading import Limits
from siren_runtime.text.rules import check_surrogates
from siren_runtime.text.tokenizer import Tokenizer

from .aggregation import Aggregation
from .decision import Cutoffs, Decision, Decisions, Rule
from .reader import Between, nothing
from .result import StreamResult, TokenScore
from .track import Member, Track


class Decide(Protocol):
    """Decides on a text, as `Judge.on_heads`."""

    def __call__(
        self,
        members: Sequence[Mapping[str, HeadText]],
        *,
        threshold: float | None,
        unknown: float,
        has_response: bool,
        spans_asked: bool,
    ) -> Mapping[str, HeadScore]:
        """The verdict of each head, the primary one's first."""


class Session:
    """One growing text. After an error it has no verdict until it begins anew."""

    def __init__(
        self,
        tracks: Sequence[Track],
        rules: Sequence[Rule],
        threshold: float | None,
        prompt: str | None,
        decide: Decide,
        limits: Limits,
    ) -> None:
        """Begin with no text.

        Args:
            threshold: the primary head's; None is its own.
            prompt: what is fed is the response to it.
        """
        self.tracks, self._prompt, self._has_response = tuple(tracks), prompt, False
        self._is_prompt_checked = not prompt
        self._decisions = Decisions(rules)
        self._threshold, self._decide_on, self._limits = threshold, decide, limits
        self.result: StreamResult | None = None
        self.error: BaseException | None = None
        self.deadline = NO_DEADLINE
        self._made: dict[Decision, None] = {}

    def brings(self, piece: str) -> int:
        """The characters that are read with a piece: its own, and with the first the prompt's."""
        return len(piece) + (len(self._prompt or "") if self.result is None else 0)

    def check_usable(self) -> None:
        """Refuse a session that failed.

        Raises:
            BackendError: it did.
        """
        if self.error is not None:
            raise BackendError(
                f"the stream failed before and has no verdict ({self.error}); reset it"
            )

    def begin(self) -> None:
        """Forget everything."""
        for track in self.tracks:
            track.begin()
        self._decisions.begin()
        self._has_response = False
        self.result = self.error = None

    def accept(self, piece: Any, deadline: Deadline) -> None:
        """Take a piece in: text, or a list of token ids, to be read until a deadline.

        Raises:
            InputError: it is neither, not what was fed before, or more than one feed reads, or the
                prompt is.
            InterruptedCall: the deadline passed.
        """
        self.deadline = deadline
        deadline.check("before the piece was read")
        if self._prompt and not self._is_prompt_checked:
            self._check_length(self._prompt, "prompt", "shorten it")
            self._is_prompt_checked = True
        if isinstance(piece, str):
            self._check_length(piece, "piece", "feed it in parts")
        else:
            piece = _listed(piece)
            if len(self.tracks) > 1:
                raise InputError("token ids are those of one tokenizer; feed an ensemble text")
        self._made = {}
        self._has_response |= self._prompt is not None and len(piece) > 0
        for track in self.tracks:
            track.accept(piece)
        for track in self.tracks[1:]:  # what the first one holds is compared with no more
            track.forget_before(self.tracks[0].tokens.start - 1)

    def _check_length(self, piece: str, what: str, hint: str) -> None:
        check_size(piece, self._limits.max_bytes)
        check_surrogates(piece, what)
        limit, tokenizers = self._limits.max_tokens, [t.member.tokenizer for t in self.tracks]
        if any(_has_more_tokens(each, piece, limit, self.deadline) for each in tokenizers):
            raise InputError(
                f"the {what} has more than the {limit:,} tokens that one feed reads; {hint}, or "
                "load the guard with a larger max_tokens_per_text"
            )

    def slide(self, number: int) -> bool:
        """Let the older half of a full track go; return whether there is more to read."""
        track = self.tracks[number]
        if not track.is_full:
            return False
        if number == 0:
            self._decide()
            self._decisions.slide(track.slide())
        else:
            track.slide()
        return True

    def conclude(self) -> StreamResult:
        """Return the verdict on all that was read.

        Raises:
            BackendError: the engine failed in spans.
        """
        self._decide()
        leader = self.tracks[0].state
        unknown = max(track.unknown for track in self.tracks)
        heads = self._decide_on(
            [track.heads() for track in self.tracks],
            threshold=self._threshold,
            unknown=unknown,
            has_response=self._has_response,
            spans_asked=self._limits.spans_asked,
        )
        primary = next(iter(heads.values()))
        categories, flagged = categories_of(heads.values())
        spans = [track.span for track in self.tracks if track.is_truncated]
        self.result = StreamResult(
            score=primary.score,
            is_harmful=primary.is_harmful,
            threshold=primary.threshold,
            tokens=leader.position(len(leader.ids)),
            computed=sum(track.computed for track in self.tracks),
            rolled_back=sum(track.rolled_back for track in self.tracks),
            slid=any(track.state.slid for track in self.tracks),
            truncated=bool(spans),
            span=spans[0] if spans else None,
            unknown=unknown,
            decisions=tuple(self._made),
            tier=primary.tier,
            risk=primary.risk,
            spans=primary.spans,
            categories=categories,
            flagged=flagged,
            heads=heads,
            as_response=primary.as_response,
            exit=leader.exit,
        )
        return self.result

    def token_scores(self) -> list[TokenScore]:
        """One entry for each token that the session holds and counts."""
        leader = self.tracks[0]
        text, shift = leader.tokens.text, leader.tokens.start
        scores, before = [], shift
        for token, (start, end), score in zip(
            leader.state.ids, leader.state.offsets, self._scores(), strict=False
        ):
            piece, space = text[start - shift : end - shift], text[before - shift : start - shift]
            scores.append(TokenScore(token, start, end, score, piece, space))
            before = max(before, end)
        return scores[leader.state.context :]

    def _decide(self) -> None:
        """Note the decisions in force at tokens just read, or at the last if there are none."""
        leader = self.tracks[0]
        anew = any(track.member.reads_anew for track in self.tracks)
        self._decisions.update(
            self._scores(), leader.state.context, together=leader.scored_from if anew else None
        )
        self._made |= dict.fromkeys(self._decisions.since(leader.scored_from))

    def _scores(self) -> list[float]:
        """The score at each token that the first track holds."""
        leader, *others = self.tracks
        if not others:
            return leader.state.scores
        places = leader.places()
        columns = [leader.state.scores, *(track.scores_at(places) for track in others)]
        scores: list[float] = np.mean(columns, axis=0).tolist()
        if not leader.is_full:  # the last token ends where all of the text does
            scores[-1] = float(np.mean([track.state.scores[-1] for track in self.tracks]))
        return scores


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
        self._open: dict[Session, None] = {}

    def __len__(self) -> int:
        """Return the number of open sessions."""
        return len(self._open)

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

    def begin(self, session: Session) -> None:
        """Let a session forget everything, and any error with it."""
        session.begin()

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
        self, pieces: Iterable[tuple[Session, Any, Deadline]], between: Between = nothing
    ) -> dict[Session, StreamResult | SirenError]:
        """Feed each session its piece and read them together, each until its deadline; one that
        fails leaves the others right.

        Args:
            between: called between two engine runs; it may open, feed and close other sessions.
        """
        results: dict[Session, StreamResult | SirenError] = {}
        busy = []
        for session, piece, deadline in pieces:
            error = self._accept(session, piece, deadline)
            if error is None:
                busy.append(session)
            else:
                results[session] = error
        for number in reversed(range(len(self.members))):  # the first goes by the others' scores
            failures = self._read(number, busy, between)
            results |= failures
            busy = [session for session in busy if session not in failures]
        for session in busy:
            try:
                results[session] = session.conclude()
                session.error = None
            except SirenError as error:  # noqa: PERF203 - each stream has its own
                results[session] = session.error = error
        return results

    def _accept(self, session: Session, piece: Any, deadline: Deadline) -> SirenError | None:
        """Take a piece in; until it is read, the session counts as one whose feed failed."""
        try:
            session.check_usable()
            if session not in self._open:
                raise InputError("the stream was opened elsewhere")
        except SirenError as error:
            return error
        try:
            session.error = BackendError("a feed was interrupted")
            session.accept(piece, deadline)
        except SirenError as error:
            session.error = error
            return error
        return None

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


def _has_more_tokens(tokenizer: Tokenizer, piece: str, limit: int, deadline: Deadline) -> bool:
    if 4 * len(piece) <= limit:  # a character takes four bytes at most, and no token takes less
        return False
    return tokenizer.has_more_tokens(piece, limit, deadline) or (
        len(tokenizer.encode_plain([piece])[0]) > limit
    )


def _listed(piece: Any) -> list[Any]:
    """Token ids as a list; text in the wrong form is not taken for them."""
    if isinstance(piece, bytes | bytearray) or not isinstance(piece, Iterable):
        raise InputError(
            f"a piece of a stream must be a str or token ids, found {type(piece).__name__}"
        )
    return list(piece)
