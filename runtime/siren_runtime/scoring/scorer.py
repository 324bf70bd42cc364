"""One opened bundle: texts to token ids, token ids to scores. What they decide is the guard's."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from siren_runtime.backends.base import Backend, StreamBackend
from siren_runtime.backends.by_stream import ScoreByStream
from siren_runtime.backends.memory import release_freed_memory
from siren_runtime.backends.onnxruntime.leave_by_stream import LeaveByStream
from siren_runtime.backends.onnxruntime.stream_cascade import CascadeStreamBackend
from siren_runtime.backends.readout import Readout
from siren_runtime.backends.shapes import LEAST_STREAM_TOKENS
from siren_runtime.bundle.arguments import whole_number
from siren_runtime.bundle.manifest import TOKENIZER_FILE, Manifest
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError, BundleError, InputError, SirenError
from siren_runtime.text.chat_template import ChatTemplate
from siren_runtime.text.deadline import NO_DEADLINE, Check, Deadline
from siren_runtime.text.passage import Passage
from siren_runtime.text.reading import Limits, Reading, Window, read_passages
from siren_runtime.text.tokenizer import Tokenizer
from siren_runtime.text.trajectory import Trajectory
from siren_runtime.text.trajectory_reading import TrajectoryReader

from .call import Given
from .engines import Engines, is_compiled
from .text_score import TextScore, text_score
from .windows import Scored, WindowRun

if TYPE_CHECKING:
    from siren_runtime.streaming.reader import StreamReader
    from siren_runtime.streaming.track import Member

_TEXTS = "texts, and no trajectories: its head was not fitted on them"
_TRAJECTORIES = (
    "trajectories of agents, and no texts: pass messages and tools (Guard.score_trajectory, siren "
    "score --trajectories)"
)
WindowKey = tuple[int, int]  # a text's place in a call, its window's number
_Key = TypeVar("_Key")


class Scorer:
    """Scores texts, or trajectories, with the engines of one bundle. Threads may share it."""

    def __init__(
        self, bundle: Bundle, engines: Engines, tokenizer: Tokenizer | None = None
    ) -> None:
        """Wrap open engines; `siren_runtime.scoring.engines.open_engines` opens them.

        Args:
            tokenizer: the bundle's, where it was opened before.

        Raises:
            BundleError: the tokenizer, or a chat template, is not usable.
            BackendError: the streaming graph, which is to score, cannot be opened; or Jinja, which
                trajectories need, is missing.
        """
        self.manifest: Manifest = bundle.manifest
        self.readout = Readout(bundle.manifest)
        self.tokenizer = tokenizer or Tokenizer(
            bundle.file(TOKENIZER_FILE),
            bundle.manifest.text.max_length,
            bundle.read(TOKENIZER_FILE),
            bundle.manifest.backbone.vocab_size,
        )
        self.trajectories = open_trajectory_reader(bundle, self.tokenizer)
        self._open_stream = engines.open_stream
        self._stream_backend: StreamBackend | None = None
        self._lock = threading.Lock()
        self._backend = engines.score
        if self._backend is None:
            self._backend = self._switch_to_streaming()
            release_freed_memory()
        self.backend_name = self._backend.name

    @property
    def backend(self) -> Backend:
        """What scores now.

        Raises:
            BackendError: the scorer is closed.
        """
        backend = self._backend
        if backend is None:
            raise BackendError("the guard is closed; load it again")
        return backend

    def score_each(
        self,
        given: Sequence[Given | SirenError],
        limits: Limits,
        token_budget: int | None = None,
        deadline: Deadline = NO_DEADLINE,
    ) -> list[TextScore | SirenError]:
        """Encode texts, or trajectories, and run them; one that cannot be scored is an error value.

        Args:
            given: an error among them is its own result.
            token_budget: as `run`.
            deadline: looked at between what is tokenized, and before each batch.

        Raises:
            BackendError: the scorer is closed.
            InputError: as `encode`.
            InterruptedCall: the deadline passed, or the call was cancelled.
        """
        readings = self.encode(given, limits, deadline)
        scored = self.run(windows_of(readings), token_budget, deadline.check)
        return self.text_scores(given, readings, scored)

    def encode(
        self,
        given: Sequence[Given | SirenError],
        limits: Limits,
        deadline: Deadline = NO_DEADLINE,
    ) -> list[Reading | SirenError]:
        """Return the token ids that are to be run of each, or why there are none.

        Raises:
            InputError: the bundle scores trajectories and one is a text, or the other way round.
            InterruptedCall: the deadline passed, or the call was cancelled.
        """
        if self.trajectories is None:
            if any(isinstance(one, Trajectory) for one in given):
                raise self._reads_only(_TEXTS)
            passages = cast("Sequence[Passage | SirenError]", given)
            return read_passages(self.tokenizer, passages, limits, deadline)
        if any(isinstance(one, Passage) for one in given):
            raise self._reads_only(_TRAJECTORIES)
        trajectories = cast("Sequence[Trajectory | SirenError]", given)
        return self.trajectories.read_each(trajectories, limits, deadline)

    def run(
        self,
        windows: Mapping[_Key, Window],
        token_budget: int | None = None,
        check: Check = NO_DEADLINE.check,
    ) -> dict[_Key, Scored | BackendError]:
        """Score windows in batches of similar length; a batch that fails is run one by one.

        Spans come from the same pass where the streaming graph gives the sums that their means
        are differences of. Elsewhere, as in an encoder, each is read by itself.

        Args:
            windows: what names a result -> token ids, and the spans among them.
            token_budget: tokens of a batch at most, padding included; None is the backend's.
            check: called before each batch, with how far the call has come; what it raises ends
                the call.

        Raises:
            BackendError: the scorer is closed, or its streaming graph cannot be opened.
            InterruptedCall: `check` raised it.
        """
        backend = self._backend_for(windows.values())
        run = WindowRun(backend, self.tokenizer, self.manifest, self.readout)
        return run.of(windows, token_budget, check)

    def text_scores(
        self,
        given: Sequence[Given | SirenError],
        readings: Sequence[Reading | SirenError],
        scored: Mapping[WindowKey, Scored | BackendError],
    ) -> list[TextScore | SirenError]:
        """The score of each text, from those of its windows, which `run` gives."""
        return [
            text_score(
                self.readout,
                one,
                reading,
                [scored[text, n] for n in range(len(reading.windows))],
            )
            if isinstance(reading, Reading) and not isinstance(one, SirenError)
            else cast("SirenError", reading)
            for text, (one, reading) in enumerate(zip(given, readings, strict=True))
        ]

    def _backend_for(self, windows: Iterable[Window]) -> Backend:
        """What scores windows: the streaming graph if there are spans and it can pool them."""
        pools = self._open_stream is not None and self.manifest.head.pools_mean
        if pools and not is_compiled(self.backend_name) and any(w.cuts for w in windows):
            self._stream_source()
        return self.backend

    def stream_member(self, max_tokens: int | None) -> "tuple[Member, str | None]":
        """Return what reads streams of this scorer, and if that is anew at each feed, why.

        The first call opens the streaming graph; in ONNX Runtime, scoring goes through it from then
        on.

        Args:
            max_tokens: tokens that a stream may hold; None is as many as there can be.

        Raises:
            BackendError: the scorer is closed, or the graph cannot be opened.
            InputError: `max_tokens` is out of range, or the bundle scores trajectories.
        """
        from siren_runtime.streaming.track import Member

        if self.trajectories is not None:
            raise self._reads_only(_TRAJECTORIES)
        reader, why = self.stream_reader(max_tokens)
        stream = self._stream_backend
        neurons = self.manifest.pooled if stream is None else stream.neurons
        head = stream.head if stream is not None and self.manifest.head.pools_mean else None
        # Open streams go on when the scorer is closed, and so does what reads their spans.
        run = WindowRun(self.backend, self.tokenizer, self.manifest, self.readout)
        how = self.readout, why is not None, run.apart, head
        return Member(self.tokenizer, reader, neurons, *how), why

    def stream_reader(self, max_tokens: int | None) -> "tuple[StreamReader, str | None]":
        """Return what reads the tokens of streams; the rest as `stream_member`."""
        from siren_runtime.streaming.cascade import CascadeReader
        from siren_runtime.streaming.reader import IncrementalReader, ReencodingReader

        stream, why = self._stream_source()
        if stream is not None:
            held = _checked_tokens(max_tokens, stream.max_tokens)
            if isinstance(stream, CascadeStreamBackend):
                return CascadeReader(stream, held, self.readout), None
            return IncrementalReader(stream, held, self.readout), None
        held = _checked_tokens(max_tokens, self.manifest.text.max_length)
        reader = ReencodingReader(self.backend, held, self.readout)
        return reader, f"{self.manifest.backbone.id}: {why}"

    @property
    def stream_backend(self) -> StreamBackend | None:
        """What runs the streaming graph, opened if it is not yet; None where none can be."""
        return self._stream_source()[0]

    def close(self) -> None:
        """Free the engines; nothing scores after that. Open streams keep them until closed."""
        with self._lock:  # a stream that is being opened would bring the engine back
            self._backend = self._stream_backend = self._open_stream = None

    @property
    def trajectory_reader(self) -> TrajectoryReader:
        """What renders trajectories.

        Raises:
            InputError: the bundle scores texts.
        """
        if self.trajectories is None:
            raise self._reads_only(_TEXTS)
        return self.trajectories

    def _reads_only(self, what: str) -> InputError:
        return InputError(f"the guard of {self.manifest.backbone.id} scores {what}")

    def _stream_source(self) -> tuple[StreamBackend | None, str | None]:
        """The streaming graph, opened at first; or None, and why there is none."""
        with self._lock:
            _ = self.backend
            why = "the bundle has no streaming graph"
            if self._open_stream is not None:
                try:
                    return self._opened_stream(), None
                except BackendError as error:
                    if not is_compiled(self.backend_name):
                        raise
                    why = f"its streams have no plan: {error}"
                    self._open_stream = None
            return None, why

    def _opened_stream(self) -> StreamBackend:
        if self._stream_backend is None:
            if is_compiled(self.backend_name):
                assert self._open_stream is not None
                self._stream_backend = self._open_stream()
            else:
                self._backend = self._switch_to_streaming()
                release_freed_memory()
        assert self._stream_backend is not None
        return self._stream_backend

    def _switch_to_streaming(self) -> Backend:
        assert self._open_stream is not None
        self._stream_backend = self._open_stream()
        if isinstance(self._stream_backend, CascadeStreamBackend):
            return LeaveByStream(self._stream_backend)
        return ScoreByStream(self._stream_backend)


def windows_of(readings: Sequence[Reading | SirenError]) -> dict[WindowKey, Window]:
    """What is to be run of each text, for `Scorer.run`."""
    return {
        (text, number): window
        for text, reading in enumerate(readings)
        if isinstance(reading, Reading)
        for number, window in enumerate(reading.windows)
    }


def open_trajectory_reader(bundle: Bundle, tokenizer: Tokenizer) -> TrajectoryReader | None:
    """What reads trajectories with a bundle; None where it scores texts.

    Raises:
        BundleError, BackendError: as `siren_runtime.text.chat_template.ChatTemplate`.
    """
    rules = bundle.manifest.trajectory
    if rules is None:
        return None
    origin = bundle.file(rules.template)
    try:
        source = bundle.read(rules.template).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{origin}: not UTF-8: {error}") from None
    template = ChatTemplate(source, rules.tokens, str(origin))
    return TrajectoryReader(template, tokenizer, bundle.manifest.text.max_length)


def _checked_tokens(max_tokens: int | None, limit: int) -> int:
    if max_tokens is None:
        return limit
    why = "which is what this backbone, or its TensorRT plan, can hold"
    return whole_number("max_tokens", max_tokens, LEAST_STREAM_TOKENS, limit, why=why)
