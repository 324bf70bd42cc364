"""One opened bundle: texts to token ids, token ids to scores. What they decide is the guard's."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from siren_runtime.backends.base import Backend, StreamBackend
from siren_runtime.backends.batching import micro_batches, right_pad
from siren_runtime.backends.by_stream import ScoreByStream
from siren_runtime.backends.memory import release_freed_memory
from siren_runtime.backends.outputs import FloatArray, no_verdict, not_finite, tempered_scores
from siren_runtime.backends.shapes import LEAST_STREAM_TOKENS
from siren_runtime.bundle.manifest import TOKENIZER_FILE, Manifest
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError, BundleError, InputError, SirenError
from siren_runtime.streaming.reader import IncrementalReader, ReencodingReader, StreamReader
from siren_runtime.streaming.track import Member
from siren_runtime.text.tokenizer import Tokenizer

from .engines import Engines, is_compiled

Tokens = Sequence[int]

_NO_TOKEN = "the tokenizer makes no token of it, so there is nothing to score"


@dataclass(frozen=True)
class Scored:
    """What the engine makes of one text.

    Attributes:
        score: probability of harm at the bundle's temperature, 0 to 1, finite.
        features: float32 [n_features], what the head read.
    """

    score: float
    features: FloatArray


class Scorer:
    """Scores texts with the engines of one bundle. Threads may share it."""

    def __init__(
        self, bundle: Bundle, engines: Engines, tokenizer: Tokenizer | None = None
    ) -> None:
        """Wrap open engines; `siren_runtime.scoring.engines.open_engines` opens them.

        Args:
            tokenizer: the bundle's, where it was opened before.

        Raises:
            BundleError: the tokenizer is not usable.
            BackendError: the streaming graph, which is to score, cannot be opened.
        """
        self.manifest: Manifest = bundle.manifest
        self.tokenizer = tokenizer or Tokenizer(
            bundle.file(TOKENIZER_FILE),
            bundle.manifest.text.max_length,
            bundle.read(TOKENIZER_FILE),
        )
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
        self, texts: Sequence[str | SirenError], token_budget: int | None = None
    ) -> list[Scored | SirenError]:
        """Encode cleaned texts and run them; a text that cannot be scored is an error value.

        Args:
            texts: an error among them is its own result.
            token_budget: as `run`.

        Raises:
            BackendError: the scorer is closed.
        """
        encoded = self.encode(texts)
        usable = {i: ids for i, ids in enumerate(encoded) if not isinstance(ids, SirenError)}
        scored = self.run(usable, token_budget)
        return [e if isinstance(e, SirenError) else scored[i] for i, e in enumerate(encoded)]

    def encode(self, texts: Sequence[str | SirenError]) -> list[Tokens | SirenError]:
        """Return the token ids of each cleaned text, or why it has none."""
        strings = {i: text for i, text in enumerate(texts) if isinstance(text, str)}
        encoded = dict(zip(strings, self._encode([*strings.values()]), strict=True))
        results: list[Tokens | SirenError] = []
        for index, text in enumerate(texts):
            ids = text if isinstance(text, SirenError) else encoded[index]
            results.append(ids or InputError(_NO_TOKEN))
        return results

    def _encode(self, texts: list[str]) -> list[list[int] | SirenError]:
        """Token ids of each text; if one spoils the batch, each is encoded alone."""
        try:
            return [*self.tokenizer.encode_batch(texts)]
        except BundleError as error:
            if len(texts) == 1:
                return [error]
            return [self._encode([text])[0] for text in texts]

    def run(
        self, encoded: Mapping[int, Tokens], token_budget: int | None = None
    ) -> dict[int, Scored | BackendError]:
        """Score token ids in batches of similar length; a batch that fails is run one by one.

        Args:
            encoded: number of a text -> its token ids.
            token_budget: tokens of a batch at most, padding included; None is the backend's.

        Raises:
            BackendError: the scorer is closed.
        """
        backend = self.backend
        numbers = list(encoded)
        results: dict[int, Scored | BackendError] = {}
        lengths, limit = [len(encoded[n]) for n in numbers], token_budget or backend.token_budget
        for batch in micro_batches(lengths, limit):
            results |= self._run_batch(backend, {numbers[i]: encoded[numbers[i]] for i in batch})
        return results

    def _run_batch(
        self, backend: Backend, batch: Mapping[int, Tokens]
    ) -> dict[int, Scored | BackendError]:
        try:
            outputs = backend.run(*right_pad([*batch.values()]))
        except BackendError as error:
            if len(batch) == 1:
                return dict.fromkeys(batch, error)
            results: dict[int, Scored | BackendError] = {}
            for number, ids in batch.items():
                results |= self._run_batch(backend, {number: ids})
            return results
        scores = tempered_scores(outputs, self.manifest.temperature)
        unusable = not_finite(
            {"score": scores, "logits": outputs.logits, "features": outputs.features}
        )
        return {
            number: no_verdict(unusable[row])
            if row in unusable
            else Scored(float(scores[row]), outputs.features[row])
            for row, number in enumerate(batch)
        }

    def stream_member(self, max_tokens: int | None) -> tuple[Member, str | None]:
        """Return what reads streams of this scorer, and if that is anew at each feed, why.

        The first call opens the streaming graph; in ONNX Runtime, scoring goes through it from then
        on.

        Args:
            max_tokens: tokens that a stream may hold; None is as many as there can be.

        Raises:
            BackendError: the scorer is closed, or the graph cannot be opened.
            InputError: `max_tokens` is out of range.
        """
        stream, why = self._stream_source()
        manifest = self.manifest
        limit = manifest.text.max_length if stream is None else stream.max_tokens
        held = _checked_tokens(max_tokens, limit)
        reader: StreamReader
        if stream is None:
            reader = ReencodingReader(self.backend, held, manifest.temperature)
        else:
            reader = IncrementalReader(stream, held, manifest.temperature)
        n_features = manifest.head.features
        return Member(self.tokenizer, reader, n_features, reads_anew=stream is None), why

    @property
    def stream_backend(self) -> StreamBackend | None:
        """What runs the streaming graph, opened if it is not yet; None where none can be."""
        return self._stream_source()[0]

    def close(self) -> None:
        """Free the engines; nothing scores after that. Open streams keep them until closed."""
        with self._lock:  # a stream that is being opened would bring the engine back
            self._backend = self._stream_backend = self._open_stream = None

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
        return ScoreByStream(self._stream_backend)


def _checked_tokens(max_tokens: int | None, limit: int) -> int:
    if max_tokens is None:
        return limit
    if not isinstance(max_tokens, int) or not LEAST_STREAM_TOKENS <= max_tokens <= limit:
        raise InputError(
            f"max_tokens must be a whole number from {LEAST_STREAM_TOKENS} to {limit}, which is "
            f"what this backbone, or its TensorRT plan, can hold; found {max_tokens!r}"
        )
    return max_tokens
