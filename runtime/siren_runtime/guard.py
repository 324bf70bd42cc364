"""The guard: a bundle that scores text."""

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np

from siren_runtime.backends.base import Backend, FloatArray, Outputs, StreamBackend
from siren_runtime.backends.batching import micro_batches, right_pad
from siren_runtime.backends.memory import release_freed_memory
from siren_runtime.backends.onnxruntime.session import Provider
from siren_runtime.backends.score_by_stream import ScoreByStream
from siren_runtime.backends.shapes import LEAST_STREAM_TOKENS
from siren_runtime.backends.tempering import tempered_scores
from siren_runtime.bundle.hub import resolve_folder
from siren_runtime.bundle.manifest import TOKENIZER_FILE, Manifest
from siren_runtime.bundle.reader import BUNDLE_PATTERNS, Bundle, Verify, load_bundle
from siren_runtime.bundle.thresholds import Tier, checked_threshold
from siren_runtime.scoring.engines import (
    BackendName,
    is_compiled,
    open_backend,
    open_plans,
    open_stream_backend,
)
from siren_runtime.streaming.aggregation import AggregationName
from siren_runtime.streaming.decision import AtTier, Rule
from siren_runtime.streaming.engine import IncrementalEngine, ReencodingEngine, StreamEngine
from siren_runtime.streaming.stream import Stream
from siren_runtime.streaming.streams import Streams
from siren_runtime.text.rules import choose, clean
from siren_runtime.text.tokenizer import Tokenizer

from .errors import BackendError, BundleError, InputError


@dataclass(frozen=True)
class ScoreResult:
    """The verdict on one text.

    Attributes:
        score: probability of harm, 0 to 1.
        is_harmful: whether `score` is at least `threshold`.
        threshold: the threshold that was applied.
        tier: name of the bundle's tier that the score falls in; None below the lowest, and where
            the bundle was not calibrated.
        features: float32 [n_features], the neurons that the head read, where they were asked for.
    """

    score: float
    is_harmful: bool
    threshold: float
    tier: str | None = None
    features: FloatArray | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return score, is_harmful and threshold, and the tier where there is one."""
        verdict = {
            "score": self.score,
            "is_harmful": self.is_harmful,
            "threshold": self.threshold,
        }
        return verdict if self.tier is None else {**verdict, "tier": self.tier}


class Guard:
    """Scores text for harm with the engine of one bundle. Threads may share a guard."""

    _tiers: Sequence[Tier]

    def __init__(
        self,
        bundle: Bundle,
        tokenizer: Tokenizer,
        backend: Backend | None,
        open_stream: Callable[[], StreamBackend] | None = None,
    ) -> None:
        """Wrap an open engine; `Guard.load` is the usual way to make a guard.

        Args:
            backend: runs the score graph; None scores with the streaming graph.
            open_stream: opens the streaming graph; None re-encodes streams.
        """
        self._manifest = bundle.manifest
        self._tiers = bundle.manifest.tiers
        self._tokenizer = tokenizer
        self._open_stream = open_stream
        self._stream_backend: StreamBackend | None = None
        self._lock = threading.Lock()
        self._warned = False
        if backend is None:
            backend = self._switch_to_streaming()
            release_freed_memory()
        self._backend: Backend | None = backend
        self._backend_name = backend.name

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        backend: BackendName = "auto",
        threads: int | None = None,
        providers: Sequence[Provider] | None = None,
        session_options: Any = None,
        buckets: Sequence[int] | None = None,
        verify: Verify = "size",
        revision: str | None = None,
        streaming: bool = False,
    ) -> "Guard":
        """Load the bundle that `source` names, or an ensemble that averages several's scores.

        Args:
            source: a bundle's folder, or the id of a hub repository that holds one; an
                ensemble's (`siren_runtime.ensemble`); or a list of bundles, which is one too.
            backend: "cpu" or "cuda" of ONNX Runtime; "tensorrt" or "tensorrt-rtx", a plan that
                siren build compiled; or "auto": a plan that runs here, else CUDA where it is
                available, else the CPU. `Guard.backend` says which it became.
            threads: CPU threads that one score may use; None leaves it to ONNX Runtime.
            providers: ONNX Runtime execution providers, by name or (name, options), in place of
                `backend`.
            session_options: an `onnxruntime.SessionOptions`, in place of `threads`.
            buckets: lengths in tokens that texts are padded to on a GPU, each kept as a CUDA
                graph; by default powers of two and their midpoints.
            verify: "size" checks that every file is there with its size, "full" also its SHA-256.
            revision: branch, tag or commit of a hub repository.
            streaming: open the streaming graph at once, where there is one, and score with it
                too. Without it the first stream does that, and for that moment the weights are
                in memory twice. Texts and streams have plans of their own: with it "auto" takes
                plans if those of streams run here too; to "tensorrt" and "tensorrt-rtx" it does
                nothing, and the first stream opens its plans.

        Raises:
            BundleError: the bundle is missing, damaged or of another format version.
            BackendError: the runtime that `backend` needs is missing or cannot run the graph.
            InputError: an argument is out of range.
        """
        from .ensemble import Ensemble, is_ensemble, read_ensemble

        load = partial(
            cls.load,
            backend=backend,
            threads=threads,
            providers=providers,
            session_options=session_options,
            buckets=buckets,
            verify=verify,
            streaming=streaming,
        )
        if not isinstance(source, (str, os.PathLike)):
            if not isinstance(source, Iterable):
                raise InputError(
                    f"source must be a bundle or a list of bundles, found {type(source).__name__}"
                )
            return Ensemble([load(member, revision=revision) for member in source])
        folder = resolve_folder(
            source, revision=revision, patterns=BUNDLE_PATTERNS, error=BundleError
        )
        if is_ensemble(folder):
            ensemble = read_ensemble(folder)
            return Ensemble(
                [load(folder / member) for member in ensemble.members],
                threshold=ensemble.threshold,
                tiers=ensemble.tiers,
            )
        bundle = load_bundle(folder, verify=verify)
        tokenizer = Tokenizer(bundle.file(TOKENIZER_FILE), bundle.manifest.text.max_length)

        options: dict[str, Any] = {
            "threads": threads,
            "providers": providers,
            "session_options": session_options,
        }
        streams = "stream" in bundle.manifest.graphs
        engine: Backend | None = None
        streams_on = backend
        if not (streaming and streams) or is_compiled(backend):
            engine = open_backend(bundle, backend, buckets=buckets, **options)
            if is_compiled(engine.name):
                streams_on = cast("BackendName", engine.name)
        elif backend == "auto" and providers is None and session_options is None:
            plans = open_plans(bundle, buckets)
            if plans is not None:
                return cls(bundle, tokenizer, plans[0], lambda: plans[1])
        return cls(
            bundle,
            tokenizer,
            engine,
            (lambda: open_stream_backend(bundle, streams_on, **options)) if streams else None,
        )

    @property
    def manifest(self) -> Manifest:
        """What guard.json says: backbone, head, text rules, verification report and more."""
        return self._manifest

    @property
    def default_threshold(self) -> float:
        """The threshold that applies where a call passes none."""
        return self._manifest.threshold

    @property
    def tiers(self) -> tuple[AtTier, ...]:
        """The tiers of calibration as decision rules for streams; empty if there are none."""
        return tuple(AtTier(tier.name, tier.threshold) for tier in self._tiers)

    @property
    def base_model_id(self) -> str:
        """The hub id of the backbone."""
        return self._manifest.backbone.id

    @property
    def backend(self) -> str:
        """What the guard runs on: "cpu", "cuda", "tensorrt" or "tensorrt-rtx"."""
        return self._backend_name

    def score(
        self,
        text: str | None = None,
        *,
        prompt: str | None = None,
        response: str | None = None,
        threshold: float | None = None,
        features: bool = False,
    ) -> ScoreResult:
        """Score one text, or a prompt and its response joined by a newline.

        Raises:
            InputError: neither or both of `text` and `prompt`/`response` are given, one is not
                a valid string, or `threshold` is outside 0 to 1.
            BackendError: the engine failed, or gave a score that is not finite.
        """
        cleaned = clean(choose(text, prompt, response))
        return self._score([cleaned], self._threshold(threshold), features)[0]

    def score_batch(
        self,
        texts: Iterable[str],
        threshold: float | None = None,
        features: bool = False,
        *,
        token_budget: int | None = None,
    ) -> list[ScoreResult]:
        """Score many texts; the results are in the order of `texts`.

        Inside, texts of similar length share a batch, so mixed lengths waste little.

        Args:
            token_budget: tokens that such a batch holds at most, padding included, but for one
                text alone; None is what runs best on the backend.

        Raises:
            InputError: `texts` is one string (each of its characters would be scored as a
                text) or no list, or holds something that is not a valid string; `token_budget`
                is not a whole number from 1; or as `score`.
            BackendError: as `score`.
        """
        if isinstance(texts, str):
            raise InputError("score_batch takes a list of texts, found one str; use score")
        if not isinstance(texts, Iterable):
            raise InputError(f"score_batch takes a list of texts, found {type(texts).__name__}")
        if token_budget is not None and (not isinstance(token_budget, int) or token_budget < 1):
            raise InputError(f"token_budget must be a whole number from 1, found {token_budget!r}")
        cleaned = [_clean_item(index, text) for index, text in enumerate(texts)]
        return self._score(cleaned, self._threshold(threshold), features, token_budget)

    def score_streaming(self, prefix: str, threshold: float | None = None) -> ScoreResult:
        """Score what has been generated so far: the whole `prefix` anew at each call.

        Raises:
            InputError, BackendError: as `score`.
        """
        return self.score(prefix, threshold=threshold)

    __call__ = score

    def stream(
        self,
        prompt: str | None = None,
        *,
        response_only: bool = False,
        aggregation: AggregationName = "mean",
        span: int = 64,
        threshold: float | None = None,
        rules: Sequence[Rule] = (),
        max_tokens: int | None = None,
    ) -> Stream:
        """Open a session over one growing text, which pays only for new tokens.

        The first one opens the bundle's streaming graph, and scoring goes through it from then
        on, so that the weights are held once. A bundle without one (an encoder), and a guard on a
        TensorRT plan whose bundle has no plan of the streaming graph that runs here, re-encode
        the text at each feed, and warn of it once.

        Args:
            prompt: what the text answers; the score is that of `score(prompt=, response=)`.
            response_only: read the prompt, and keep it out of the mean; the tokens that count
                are those that reach beyond it. Until there is one, the score is the prompt's.
            aggregation: "mean" over all tokens, as `score` has it; "window", over the last
                `span`; or "ema", exponential with that span.
            span: tokens of the window or the moving average.
            threshold: harmful from this score; None is the bundle's.
            rules: decision rules that `StreamResult.decisions` reports.
            max_tokens: tokens that the stream may hold, at most the backbone's context, or what
                its TensorRT plan takes, which is the default. Once full, it lets the older half
                go (docs/streaming.md).

        Raises:
            InputError: an argument is out of range, or not possible without a streaming graph.
            BackendError: the guard is closed, or the streaming graph cannot be opened.
        """
        streams = self.streams(max_streams=1, max_tokens=max_tokens)
        return streams.open(
            prompt,
            response_only=response_only,
            aggregation=aggregation,
            span=span,
            threshold=threshold,
            rules=rules,
        )

    def streams(self, *, max_streams: int | None = None, max_tokens: int | None = None) -> Streams:
        """Open streams that are read in one batch.

        Args:
            max_streams: how many may be open at once; None sets no limit.
            max_tokens: as `stream`, for each.

        Raises:
            InputError, BackendError: as `stream`.
        """
        if max_streams is not None and (not isinstance(max_streams, int) or max_streams < 1):
            raise InputError(f"max_streams must be a whole number from 1, found {max_streams!r}")
        backend = self._streaming()
        engine: StreamEngine
        if backend is None:
            limit = self._manifest.text.max_length
            engine = ReencodingEngine(
                self._usable(), _checked_tokens(max_tokens, limit), self._manifest.temperature
            )
        else:
            engine = IncrementalEngine(
                backend,
                _checked_tokens(max_tokens, backend.max_tokens),
                self._manifest.temperature,
            )
        return Streams(
            engine,
            self._tokenizer,
            self._manifest.head.features,
            self.default_threshold,
            self._tier,
            max_streams,
            reencodes=backend is None,
        )

    def close(self) -> None:
        """Free the engine; the guard cannot score after that. Open streams keep it until closed."""
        with self._lock:  # a stream that is being opened would bring the engine back
            self._backend = self._stream_backend = self._open_stream = None

    def _usable(self) -> Backend:
        backend = self._backend
        if backend is None:
            raise BackendError("the guard is closed; load it again")
        return backend

    def _streaming(self) -> StreamBackend | None:
        """The streaming graph, opened at first; None, with one warning, where there is none."""
        with self._lock:
            self._usable()
            why = "the bundle has no streaming graph"
            if self._open_stream is not None:
                try:
                    return self._opened_stream()
                except BackendError as error:
                    if not is_compiled(self._backend_name):
                        raise
                    why = f"its streams have no plan: {error}"
                    self._open_stream = None
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self.base_model_id}: {why}, so each feed of a stream re-encodes its text",
                    stacklevel=4,
                )
            return None

    def _opened_stream(self) -> StreamBackend:
        """Open the streaming graph at first. ONNX Runtime scores with it from then on."""
        if self._stream_backend is None:
            if is_compiled(self._backend_name):
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

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _threshold(self, threshold: float | None) -> float:
        return self.default_threshold if threshold is None else checked_threshold(threshold)

    def _tier(self, score: float) -> str | None:
        return next((tier.name for tier in self._tiers if score >= tier.threshold), None)

    def _verdict(self, score: float, threshold: float, features: FloatArray | None) -> ScoreResult:
        return ScoreResult(
            score=score,
            is_harmful=score >= threshold,
            threshold=threshold,
            tier=self._tier(score),
            features=features,
        )

    def _score(
        self,
        cleaned: list[str],
        threshold: float,
        features: bool,
        token_budget: int | None = None,
    ) -> list[ScoreResult]:
        backend = self._usable()
        sequences = self._tokenizer.encode_batch(cleaned)
        if not all(sequences):
            raise InputError(
                f"texts[{sequences.index([])}]: the tokenizer makes no token of it, so there is "
                "nothing to score"
            )
        results: dict[int, ScoreResult] = {}
        lengths, limit = [len(ids) for ids in sequences], token_budget or backend.token_budget
        for batch in micro_batches(lengths, limit):
            outputs = backend.run(*right_pad([sequences[index] for index in batch]))
            scores = tempered_scores(outputs, self._manifest.temperature)
            _check_finite(scores, outputs, batch)
            for row, index in enumerate(batch):
                results[index] = self._verdict(
                    float(scores[row]),
                    threshold,
                    outputs.features[row].copy() if features else None,
                )
        return [results[index] for index in range(len(cleaned))]


def _checked_tokens(max_tokens: int | None, limit: int) -> int:
    if max_tokens is None:
        return limit
    if not isinstance(max_tokens, int) or not LEAST_STREAM_TOKENS <= max_tokens <= limit:
        raise InputError(
            f"max_tokens must be a whole number from {LEAST_STREAM_TOKENS} to {limit}, which is "
            f"what this backbone, or its TensorRT plan, can hold; found {max_tokens!r}"
        )
    return max_tokens


def _clean_item(index: int, text: str) -> str:
    try:
        return clean(text)
    except InputError as error:
        raise InputError(f"texts[{index}]: {error}") from None


def _check_finite(scores: FloatArray, outputs: Outputs, batch: list[int]) -> None:
    """A comparison with NaN is false, so a score that is not finite would pass as safe."""
    checked = {"score": scores, "logits": outputs.logits, "features": outputs.features}
    for name, values in checked.items():
        finite = np.isfinite(values.reshape(len(batch), -1)).all(axis=1)
        if not finite.all():
            raise BackendError(
                f"the engine's {name} for texts[{batch[int(finite.argmin())]}] is not finite, so "
                "there is no verdict; check the bundle with siren inspect --check, or export it "
                "in a higher precision"
            )
