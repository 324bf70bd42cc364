"""Many streams on one engine, read in one batch."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex

from siren_runtime.bundle.thresholds import checked_threshold
from siren_runtime.errors import BackendError, InputError, SirenError
from siren_runtime.text.tokenizer import Tokenizer

from .aggregation import AggregationName, aggregation_of
from .decision import Rule
from .engine import StreamEngine
from .state import StreamState
from .stream import Stream, StreamResult


class Streams:
    """Opens streams that come and go, and reads what they were fed together.

        with guard.streams(max_streams=64, max_tokens=2048) as streams:
            chat = streams.open(prompt="How do I bake bread?")
            results = streams.feed([(chat, "Mix flour"), (other, "...")])

    `Guard.streams` makes it. A stream takes up to `max_tokens` times `bytes_per_token` bytes, and
    a quarter more; room for each grows with the longest. Threads may share it and its streams;
    they take turns.
    """

    def __init__(
        self,
        engine: StreamEngine,
        tokenizer: Tokenizer,
        n_features: int,
        threshold: float,
        tier_of: Callable[[float], str | None],
        max_streams: int | None,
        reencodes: bool,
    ) -> None:
        self.tokenizer, self.tier_of = tokenizer, tier_of
        self._engine: StreamEngine | None = engine
        self._n_features, self._threshold = n_features, threshold
        self._max_streams, self._reencodes = max_streams, reencodes
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
        aggregate = aggregation_of(aggregation, span)
        if self._reencodes and (response_only or aggregate is not None):
            raise InputError(
                "this bundle has no streaming graph, so a stream re-encodes its text, which "
                "allows neither response_only nor another aggregation than the mean"
            )
        threshold = self._threshold if threshold is None else checked_threshold(threshold)
        with self.lock:
            engine = self._usable()
            if self._max_streams is not None and len(self._open) >= self._max_streams:
                raise InputError(f"{self._max_streams} streams are open; close one first")
            state = StreamState(self._n_features, aggregate, rules)
            stream = Stream(self, state, prompt, response_only, threshold)
            engine.add(state)
            self._open[stream] = None
        return stream

    def feed(
        self, pieces: Iterable[tuple[Stream, str | Sequence[SupportsIndex]]]
    ) -> list[StreamResult | SirenError]:
        """Feed each stream its piece, text or token ids, and read them together.

        A stream that fails leaves the others right: its error stands in the place of its result,
        and it refuses to go on until it is reset.

        Raises:
            InputError: a stream is not of these, or is named twice, or `pieces` are not pairs.
            BackendError: closed.
        """
        try:
            fed = [(stream, piece) for stream, piece in pieces]
        except (TypeError, ValueError) as cause:
            raise InputError("pieces must be pairs of a stream and its piece") from cause
        for stream, _ in fed:
            if not isinstance(stream, Stream):
                raise InputError(f"only a Stream can be fed, found {type(stream).__name__}")
        with self.lock:
            engine = self._usable()
            streams = [stream for stream, _ in fed]
            if len(set(streams)) < len(streams):
                raise InputError("a stream is named twice; join its pieces")
            results: dict[Stream, StreamResult | SirenError] = {
                stream: error for stream, piece in fed if (error := self._accept(stream, piece))
            }
            busy = [stream for stream in streams if stream not in results]
            while busy:
                failures = engine.read([stream.state for stream in busy])
                for stream in busy:
                    error = failures.get(stream.state)
                    if (outcome := error or self._conclude(stream)) is not None:
                        results[stream] = outcome
                        stream.error = outcome if isinstance(outcome, SirenError) else None
                busy = [stream for stream in busy if stream not in results]
        return [results[stream] for stream in streams]

    @property
    def max_tokens(self) -> int:
        """The tokens that a stream may hold before text slides out of it."""
        return self._usable().max_tokens

    @property
    def bytes_per_token(self) -> int:
        """Memory that each token held takes, in bytes: its keys, values and neurons."""
        return self._usable().bytes_per_token

    @property
    def memory_bytes(self) -> int:
        """Memory that all open streams take now, in bytes."""
        with self.lock:
            engine = self._usable()
            return sum(engine.bytes_of(stream.state) for stream in self._open)

    def memory_of(self, stream: Stream) -> int:
        """Memory that one stream takes now, in bytes."""
        with self.lock:
            return self._usable().bytes_of(stream.state)

    def restart(self, stream: Stream) -> None:
        """Reset a stream, as `Stream.reset`."""
        with self.lock:
            engine, old = self._usable(), stream.state
            state = StreamState(self._n_features, old.aggregation, old.rules)
            engine.remove(old)
            engine.add(state)
            stream.begin(state)

    def discard(self, stream: Stream) -> None:
        """Free a stream's memory, as `Stream.close`."""
        with self.lock:
            if stream in self._open and self._engine is not None:
                del self._open[stream]
                self._engine.remove(stream.state)

    def close(self) -> None:
        """Close all streams and free their memory."""
        with self.lock:
            for stream in list(self._open):
                stream.close()
            self._engine = None

    def __len__(self) -> int:
        """Return the number of open streams."""
        return len(self._open)

    def __enter__(self) -> "Streams":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _accept(self, stream: Stream, piece: Any) -> SirenError | None:
        """Take a piece in; until it is read, the stream counts as one whose feed failed."""
        try:
            stream.check_usable()
            if stream not in self._open:
                raise InputError("the stream was opened elsewhere")
        except SirenError as error:
            return error
        try:
            stream.error = BackendError("a feed was interrupted")
            stream.accept(piece if isinstance(piece, str) else _listed(piece))
        except SirenError as error:
            stream.error = error
            return error
        return None

    def _conclude(self, stream: Stream) -> StreamResult | SirenError | None:
        """Return the outcome of what was read; None if the stream slid and has more to read."""
        try:
            return None if stream.slide() else stream.conclude()
        except SirenError as error:
            return error

    def _usable(self) -> StreamEngine:
        if self._engine is None:
            raise BackendError("the streams are closed; open others with Guard.streams")
        return self._engine


def _listed(piece: Any) -> list[Any]:
    """Token ids as a list; text in the wrong form is not taken for them."""
    if isinstance(piece, bytes | bytearray) or not isinstance(piece, Iterable):
        raise InputError(
            f"a piece of a stream must be a str or token ids, found {type(piece).__name__}"
        )
    return list(piece)
