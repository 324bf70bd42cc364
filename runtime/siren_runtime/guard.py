"""The guard: text in, verdict out. One scorer, or several whose scores are averaged."""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends.onnxruntime.providers import Provider
from .bundle.reader import Verify
from .errors import SirenError
from .scoring.call import Call, Given, Text, passages_of, raised, trajectories_of
from .scoring.engines import BackendName, Request
from .scoring.members import Members
from .scoring.opening import open_source
from .scoring.result import ScoreResult
from .text.passage import make_passage
from .text.reading import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_TOKENS,
    DEFAULT_MAX_UNKNOWN,
    Limits,
    LongText,
    Unreadable,
)
from .text.spans import checked_sizes
from .text.trajectory import trajectory_of

if TYPE_CHECKING:  # guards that do not stream need not wait for it
    from .scoring.trajectory_stream import TrajectoryStream
    from .streaming.aggregation import AggregationName
    from .streaming.decision import Rule
    from .streaming.handles import Stream, Streams


class Guard(Members):
    """Scores text for harm: by one bundle, or by the mean of several's scores, an ensemble.

    Each member scores the same cleaned text by its own tokenizer and length, and its `features`
    come one after another. Threads may share a guard.

    The guard of a trajectory head scores trajectories of agents, and refuses texts.
    """

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
        verify: Verify = "read",
        revision: str | None = None,
        streaming: bool = False,
        long_text: LongText = "windows",
        spans: bool | Iterable[int] | None = None,
        max_tokens_per_text: int = DEFAULT_MAX_TOKENS,
        max_bytes_per_text: int = DEFAULT_MAX_BYTES,
        max_unknown: float = DEFAULT_MAX_UNKNOWN,
        unreadable: Unreadable = "refuse",
        exits: bool = True,
    ) -> "Guard":
        """Load the bundle that `source` names, or an ensemble that averages several's scores.

        Args:
            source: a bundle's folder, the name of a shipped guard (minilm), whose bundle siren
                export made, or the id of a hub repository that holds one; an ensemble's, which
                ensemble.json makes; or a list of bundles, which is one too. `org/name` is a folder
                if there is a folder `org`; `hf://org/name` never is.
            backend: "cpu" or "cuda" of ONNX Runtime; "tensorrt" or "tensorrt-rtx", a plan that
                siren build compiled; or "auto": a plan that runs here, else CUDA where it is
                available, else the CPU. `Guard.backend` says which it became.
            threads: CPU threads that one score may use; None leaves it to ONNX Runtime. More
                than this process has cores are not taken, which a log says.
            providers: ONNX Runtime's, by name or (name, options), in place of `backend`.
            session_options: an `onnxruntime.SessionOptions`, in place of `threads`.
            buckets: tokens that texts are padded to on a GPU; None is powers of two and midpoints.
            verify: "read" checks that every file is there with its size, and the SHA-256 of the
                bytes that the engine gets; "full" also of files that are not read, "size" of none.
            revision: branch, tag or commit of a hub repository.
            streaming: open the streaming graph at once, where there is one, and score with it
                too. Without it the first stream does that, and for that moment the weights are
                in memory twice. With it "auto" takes plans if those of streams run here too; to
                "tensorrt" and "tensorrt-rtx" it does nothing.
            long_text: how a text over the bundle's max_length is read: in overlapping "windows", of
                which the highest score counts; "truncate" reads its beginning, as llm-siren does;
                "refuse" raises, of a trajectory too. A call may say otherwise.
            spans: True scores sentences and spans too, of the sizes that there are thresholds for,
                else of 32, 64 and 128 tokens; or sizes in tokens. A span that reaches its
                threshold, which siren calibrate --spans writes into the bundle, makes a text
                harmful; where there is none, the text's counts. None is True where the bundle has
                such thresholds. A call may say otherwise.
            max_tokens_per_text, max_bytes_per_text: a larger text is refused before it is read.
            max_unknown: share of a text's tokens that may be unknown for a verdict of safe.
            unreadable: a text over it raises ("refuse") or has `is_harmful` None ("review").
            exits: let exits decide clear texts, where siren calibrate --cascade chose bounds.

        Raises:
            BundleError: the bundle is missing, damaged or of another format version.
            BackendError: the runtime that `backend` needs is missing or cannot run the graph.
            InputError: an argument is out of range.
        """
        request = Request(backend, threads, providers, session_options, buckets, streaming, exits)
        limits = Limits(long_text, max_tokens_per_text, max_bytes_per_text, max_unknown, unreadable)
        if spans is not None and not isinstance(spans, bool | np.bool_):
            spans = checked_sizes(spans)  # which may be read once only
        wanted = None if spans is None else bool(spans)
        opened = open_source(source, request, verify=verify, revision=revision, spans=wanted)
        guard = cls(
            opened.scorers,
            threshold=opened.threshold,
            tiers=opened.tiers,
            span_thresholds=opened.span_thresholds,
            responses=opened.responses,
            limits=limits,
        )
        guard.judge = replace(guard.judge, limits=guard.call(spans=spans).limits)
        return guard

    def score(
        self,
        text: str | None = None,
        *,
        prompt: str | None = None,
        response: str | None = None,
        threshold: float | None = None,
        features: bool = False,
        long_text: LongText | None = None,
        spans: bool | Iterable[int] | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
        order: int | None = None,
    ) -> ScoreResult:
        """Score one text, or a prompt and its response joined by a newline.

        Where prompt and response do not fit together, every window of the response is scored
        behind the prompt's end, and the prompt by itself.

        Args:
            threshold: harmful from this score of the primary head; None is the guard's.
            features: return what the head read too.
            long_text, spans: as `load`; None is as the guard was loaded.
            deadline: seconds that the call may take; docs/use.md says where it is looked at.
            cancel: ends the call at such a place once it is set.
            order: of polynomial heads, the one that decides; None is the highest, as is one that a
                head of several has not.

        Raises:
            InputError: neither or both of `text` and `prompt`/`response` are given, one is not
                a valid string, the text is larger than is read, too little of it is known to be
                called safe, or another argument is out of range.
            BackendError: the engine failed, or gave a score that is not finite.
            InterruptedCall: the deadline passed, or the call was cancelled.
        """
        call = self.call(
            threshold, features, long_text, spans, deadline=deadline, cancel=cancel, order=order
        )
        passage = make_passage(text, prompt, response, max_bytes=call.limits.max_bytes)
        (result,) = self._score_each([passage], call)
        if isinstance(result, SirenError):
            raise result
        return result

    def score_batch(
        self,
        texts: Iterable[Text],
        threshold: float | None = None,
        features: bool = False,
        *,
        token_budget: int | None = None,
        long_text: LongText | None = None,
        spans: bool | Iterable[int] | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
        order: int | None = None,
    ) -> list[ScoreResult]:
        """Score many texts; the results are in the order of `texts`.

        Args:
            texts: each a str, or a tuple of a prompt and its response.
            token_budget: tokens that such a batch holds at most, padding included, but for one
                text alone; None is what runs best on the backend.
            threshold, features, long_text, spans, deadline, cancel, order: as `score`.

        Raises:
            InputError: `texts` is one string (each of its characters would be scored as a
                text) or no list, or holds something that is not a valid string; `token_budget`
                is not a whole number from 1; or as `score`.
            BackendError, InterruptedCall: as `score`.
        """
        call = self.call(
            threshold,
            features,
            long_text,
            spans,
            token_budget=token_budget,
            deadline=deadline,
            cancel=cancel,
            order=order,
        )
        passages = raised(passages_of(texts, "score_batch", call))
        return raised(self._score_each(passages, call))

    def score_each(
        self,
        texts: Iterable[Text],
        threshold: float | None = None,
        features: bool = False,
        *,
        token_budget: int | None = None,
        long_text: LongText | None = None,
        spans: bool | Iterable[int] | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
        order: int | None = None,
    ) -> list[ScoreResult | SirenError]:
        """Score many texts as `score_batch`; the error of a text stands in place of its result.

        Raises:
            InputError, BackendError, InterruptedCall: as `score`, but for what texts are at fault.
        """
        call = self.call(
            threshold,
            features,
            long_text,
            spans,
            token_budget=token_budget,
            deadline=deadline,
            cancel=cancel,
            order=order,
        )
        passages = passages_of(texts, "score_each", call)
        return self._score_each(passages, call)

    def score_streaming(self, prefix: str, threshold: float | None = None) -> ScoreResult:
        """Score what has been generated so far: the whole `prefix` anew."""
        return self.score(prefix, threshold=threshold)

    __call__ = score

    def score_trajectory(
        self,
        trajectory: Any = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        threshold: float | None = None,
        features: bool = False,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> ScoreResult:
        """Score what an agent did so far, by a guard of trajectories (docs/trajectories.md).

        Args:
            trajectory: a `siren_runtime.Trajectory`, a list of messages, or an
                object with "messages" and "tools".
            messages, tools: in its place, as an OpenAI client has them.
            threshold, features, deadline, cancel: as `score`.

        Raises:
            InputError: it is no trajectory, or the guard scores texts; or as `score`.
            BackendError, InterruptedCall: as `score`.
        """
        given = trajectory_of(trajectory, messages, tools)
        (result,) = self.score_each_trajectory(
            [given], threshold, features, deadline=deadline, cancel=cancel
        )
        if isinstance(result, SirenError):
            raise result
        return result

    def score_trajectories(
        self,
        trajectories: Iterable[Any],
        threshold: float | None = None,
        features: bool = False,
        *,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[ScoreResult]:
        """Score many trajectories as `score_trajectory`; the results are in their order."""
        results = self.score_each_trajectory(
            trajectories, threshold, features, deadline=deadline, cancel=cancel
        )
        return raised(results, "trajectories")

    def score_each_trajectory(
        self,
        trajectories: Iterable[Any],
        threshold: float | None = None,
        features: bool = False,
        *,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[ScoreResult | SirenError]:
        """As `score_trajectories`; the error of one stands in place of its result."""
        call = self.call(threshold, features, deadline=deadline, cancel=cancel)
        return self._score_each(trajectories_of(trajectories, "score_each_trajectory"), call)

    def render_trajectory(self, trajectory: Any) -> str:
        """The text that is scored of a trajectory, by the first member, before any truncation."""
        reader = self.scorers[0].trajectory_reader
        return reader.render(trajectory_of(trajectory), self.judge.limits)

    def stream_trajectory(
        self,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        threshold: float | None = None,
    ) -> "TrajectoryStream":
        """Open a stream over what an agent does, which pays only for the tokens of new turns.

        Raises:
            InputError: the guard scores texts, or the threshold is out of range.
            BackendError: as `stream`.
        """
        from .scoring.trajectory_stream import TrajectoryStream

        stream = TrajectoryStream(self.scorers, self.judge, tools, self.call(threshold))
        self._warn_once(stream.reads_anew)
        return stream

    def stream(
        self,
        prompt: str | None = None,
        *,
        response_only: bool = False,
        aggregation: "AggregationName" = "mean",
        span: int = 64,
        threshold: float | None = None,
        rules: "Sequence[Rule]" = (),
        max_tokens: int | None = None,
    ) -> "Stream":
        """Open a session over one growing text, which pays only for new tokens.

        The first one opens the bundle's streaming graph, and scoring goes through it from then
        on, so that the weights are held once. A bundle without one (an encoder), and a guard on a
        TensorRT plan whose bundle has no plan of the streaming graph that runs here, re-encode
        the text at each feed, and warn of it once.

        Args:
            prompt: what the text answers; the score is that of `score(prompt=, response=)`, and
                so are the thresholds. An answer to a prompt that is not known has "".
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
        streams = self._open_streams(1, max_tokens)
        return streams.open(
            prompt,
            response_only=response_only,
            aggregation=aggregation,
            span=span,
            threshold=threshold,
            rules=rules,
        )

    def streams(
        self, *, max_streams: int | None = None, max_tokens: int | None = None
    ) -> "Streams":
        """Open streams that are read in one batch.

        Args:
            max_streams: how many may be open at once; None sets no limit.
            max_tokens: as `stream`, for each, and so are the errors.
        """
        return self._open_streams(max_streams, max_tokens)

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _score_each(
        self, given: Sequence[Given | SirenError], call: Call
    ) -> list[ScoreResult | SirenError]:
        """The verdict on each, by all members."""
        by_member = [
            scorer.score_each(given, call.limits, call.token_budget, call.deadline)
            for scorer in self.scorers
        ]
        return self.judge.verdicts(by_member, call)
