"""What a caller holds: a stream, and the streams that are read in one batch.

    with guard.stream() as stream:
        for piece in pieces:
            if stream.feed(piece).is_harmful:
                break

Scores are those of `Guard.score` of the whole text so far, however it is cut, as long as it fits
in `max_length`; beyond, those of a whole text that is not truncated, as long as it fits in the
stream (`max_tokens`). What happens then is the sliding policy of docs/streaming.md.
"""

import threading
from collections.abc import Iterable, Sequence
from typing import SupportsIndex, cast

from siren_runtime.bundle.arguments import truth_value
from siren_runtime.bundle.thresholds import checked_threshold
from siren_runtime.errors import BackendError, InputError, SirenError
from siren_runtime.text.deadline import Deadline

from .aggregation import AggregationName, aggregation_of
from .decision import Rule, checked_rules
from .reader import Between, nothing
from .result import StreamResult, TokenScore
from .session import Session
from .sessions import Sessions

Piece = str | Sequence[SupportsIndex]  # text, or token ids of the backbone's tokenizer


class Stream:
    """A session over one growing text. `Guard.stream` and `Streams.open` make it.

    A stream takes text or token ids, not both. After an error it refuses to go on until `reset`,
    since it no longer knows the whole text. Threads may share it.
    """

    def __init__(self, streams: "Streams", session: Session) -> None:
        self._streams, self.session = streams, session
        self._closed = False

    def feed(
        self,
        text: str,
        *,
        last: bool = False,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> StreamResult:
        """Add `text` and score all text so far.

        Args:
            last: whether the text ends with it. Spans that its end cuts count then too, as in
                `Guard.score`; so the verdict on a last sentence without a mark is had. Nothing
                more to say is an empty text.
            deadline, cancel: as `Guard.score`. A stream whose feed was ended is to be reset.

        Raises:
            InputError: `text` is not a string or holds a lone surrogate, the tokenizer makes no
                token of the text so far, or token ids were fed before.
            BackendError: the engine failed or gave a score that is not finite, the stream is
                closed, or it failed before.
            InterruptedCall: the deadline passed, or the call was cancelled.
        """
        return self._fed(text, Deadline(deadline, cancel), last)

    def feed_tokens(
        self,
        ids: Iterable[SupportsIndex],
        *,
        last: bool = False,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> StreamResult:
        """Add token ids of the backbone's tokenizer and score all so far.

        The first feed holds the special tokens that the tokenizer puts in front, unless the
        stream has a prompt, which is tokenized with them.

        Args:
            last, deadline, cancel: as `feed`.

        Raises:
            InputError: an id is not a whole number from 0, or text was fed before; an ensemble,
                whose members have tokenizers of their own, takes text only.
            BackendError, InterruptedCall: as `feed`.
        """
        if isinstance(ids, str):
            raise InputError("feed_tokens takes token ids, found a str; use feed")
        return self._fed(cast("Sequence[SupportsIndex]", ids), Deadline(deadline, cancel), last)

    @property
    def result(self) -> StreamResult | None:
        """What the last feed returned; None before the first.

        Raises:
            BackendError: the stream is closed or failed.
        """
        with self._streams.lock:
            self._check_usable()
            return self.session.result

    @property
    def scores(self) -> list[TokenScore]:
        """One entry for each token that the stream holds and counts.

        Of an ensemble, the tokens are the first member's and the scores the mean of all members'.
        Where an exit decided, the whole guard reads the tokens that wait behind it now.

        Raises:
            BackendError: the stream is closed or failed.
        """
        with self._streams.lock:
            self._check_usable()
            return self._streams.sessions.token_scores(self.session)

    @property
    def memory_bytes(self) -> int:
        """Memory that the stream takes now, in bytes."""
        with self._streams.lock:
            self._check_usable()
            return self._streams.sessions.bytes_of(self.session)

    def reset(self) -> None:
        """Begin anew, with the same prompt and rules.

        Raises:
            BackendError: the stream is closed.
        """
        with self._streams.lock:
            self.check_open()
            self.session.begin()

    def close(self) -> None:
        """Free the stream's memory; it cannot be used after that."""
        with self._streams.lock:
            if not self._closed:
                self._closed = True
                self._streams.discard(self)

    def check_open(self) -> None:
        """Refuse a stream that is closed.

        Raises:
            BackendError: it is.
        """
        if self._closed:
            raise BackendError("the stream is closed; open another one")

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_usable(self) -> None:
        self.check_open()
        self.session.check_usable()

    def _fed(self, piece: Piece, deadline: Deadline, last: bool) -> StreamResult:
        (result,) = self._streams.read([(self, piece, deadline, truth_value("last", last))])
        if isinstance(result, SirenError):
            raise result
        return result


class Streams:
    """Opens streams that come and go, and reads what they were fed together.

        with guard.streams(max_streams=64, max_tokens=2048) as streams:
            chat = streams.open(prompt="How do I bake bread?")
            results = streams.feed([(chat, "Mix flour"), (other, "...")])

    `Guard.streams` makes it. A stream takes up to `max_tokens` times `bytes_per_token` bytes, and
    a quarter more; room for each grows with the longest. Threads may share it and its streams;
    they take turns.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions: Sessions | None = sessions
        self._open: dict[Stream, None] = {}
        self.lock = threading.RLock()  # its streams take it too

    def open(
        self,
        prompt: str | None = None,
        *,
        response_only: bool = False,
        aggregation: AggregationName = "mean",
        span: int = 64,
        threshold: float | None = None,
        rules: Sequence[Rule] = (),
    ) -> Stream:
        """Open a stream; arguments as `Guard.stream`.

        Raises:
            InputError: as `Guard.stream`, or `max_streams` are open.
            BackendError: closed.
        """
        if prompt is not None and not isinstance(prompt, str):
            raise InputError(f"prompt must be a str, found {type(prompt).__name__}")
        response_only = truth_value("response_only", response_only)
        aggregate, rules = aggregation_of(aggregation, span), checked_rules(rules)
        threshold = None if threshold is None else checked_threshold(threshold)
        with self.lock:
            session = self.sessions.open(prompt, response_only, aggregate, rules, threshold)
            stream = Stream(self, session)
            self._open[stream] = None
        return stream

    def feed(
        self,
        pieces: Iterable[tuple[Stream, Piece]],
        *,
        last: Iterable[Stream] = (),
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[StreamResult | SirenError]:
        """Feed each stream its piece, text or token ids, and read them together.

        A stream that fails leaves the others right: its error stands in the place of its result,
        and it refuses to go on until it is reset.

        Args:
            last: the streams whose text ends with their piece, as `Stream.feed`.
            deadline, cancel: as `Guard.score`, for all; the error of a stream that is not read by
                then is an `InterruptedCall`.

        Raises:
            InputError: a stream is not of these, or is named twice, or `pieces` are not pairs.
            BackendError: closed.
        """
        until = Deadline(deadline, cancel)
        try:
            ended = set(last)
        except TypeError as cause:
            raise InputError("last must be the streams whose text ends") from cause
        try:
            fed = [(stream, piece, until, stream in ended) for stream, piece in pieces]
        except (TypeError, ValueError) as cause:
            raise InputError("pieces must be pairs of a stream and its piece") from cause
        for stream, *_ in fed:
            if not isinstance(stream, Stream):
                raise InputError(f"only a Stream can be fed, found {type(stream).__name__}")
        if not ended <= {stream for stream, *_ in fed}:
            raise InputError("last names a stream that has no piece; feed it an empty text")
        return self.read(fed)

    def read(
        self, fed: Sequence[tuple[Stream, Piece, Deadline, bool]], between: Between = nothing
    ) -> list[StreamResult | SirenError]:
        """Feed as `feed`, each stream with a deadline of its own, and whether its text ends.

        Args:
            between: called in this thread between two engine runs; it may open, read and close
                other streams of these.

        Raises:
            InputError: a stream is named twice.
            BackendError: closed.
        """
        with self.lock:
            sessions = self.sessions
            if len({stream for stream, *_ in fed}) < len(fed):
                raise InputError("a stream is named twice; join its pieces")
            closed = {stream: error for stream, *_ in fed if (error := _why_closed(stream))}
            given = [
                (stream.session, piece, until, is_last)
                for stream, piece, until, is_last in fed
                if stream not in closed
            ]
            results = sessions.feed(given, between)
        return [closed.get(stream) or results[stream.session] for stream, *_ in fed]

    @property
    def max_tokens(self) -> int:
        """The tokens that a stream may hold before text slides out of it."""
        return min(member.reader.max_tokens for member in self.sessions.members)

    @property
    def bytes_per_token(self) -> int:
        """Memory that each token held takes, in bytes: its keys, values and neurons.

        Blocks that look back over a window keep no more tokens than that.
        """
        return sum(member.reader.bytes_per_token for member in self.sessions.members)

    @property
    def memory_bytes(self) -> int:
        """Memory that all open streams take now, in bytes."""
        with self.lock:
            return self.sessions.bytes

    @property
    def sessions(self) -> Sessions:
        """What the streams are read by.

        Raises:
            BackendError: closed.
        """
        if self._sessions is None:
            raise BackendError("the streams are closed; open others with Guard.streams")
        return self._sessions

    def discard(self, stream: Stream) -> None:
        """Free a stream's memory, as `Stream.close`."""
        with self.lock:
            if self._sessions is not None and stream in self._open:
                del self._open[stream]
                self._sessions.close(stream.session)

    def close(self) -> None:
        """Close all streams and free their memory."""
        with self.lock:
            for stream in list(self._open):
                stream.close()
            self._sessions = None

    def __len__(self) -> int:
        """Return the number of open streams."""
        return len(self._open)

    def __enter__(self) -> "Streams":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _why_closed(stream: Stream) -> BackendError | None:
    try:
        stream.check_open()
    except BackendError as error:
        return error
    return None
