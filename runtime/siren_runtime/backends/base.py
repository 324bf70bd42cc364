"""What a backend is: something that runs a bundle's score graph, or its streaming graph."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from siren_runtime.bundle.cascade import Cascade
from siren_runtime.bundle.graphs import (
    FEATURE_COUNT,
    FEATURE_SUM,
    INPUT_IDS,
    PAST_LENGTHS,
    CacheSpec,
    names,
)
from siren_runtime.bundle.heads import HeadSpec

from .outputs import BoolArray, CacheArray, FloatArray, Outputs, StreamOutputs, TokenArray

# An exit's number, the rows that are still there, int64 [rows], and its scores of them -> whether
# each leaves, bool [rows].
Leave = Callable[[int, TokenArray, FloatArray], BoolArray]


def stream_inputs(
    cache: CacheSpec,
    input_ids: TokenArray,
    past_lengths: TokenArray,
    past: Sequence[CacheArray],
    feature_sum: FloatArray,
    feature_count: TokenArray,
) -> dict[str, npt.NDArray[Any]]:
    """The inputs of the streaming graph by name, from what `StreamBackend.step` takes."""
    return {
        INPUT_IDS: input_ids,
        PAST_LENGTHS: past_lengths,
        FEATURE_SUM: feature_sum,
        FEATURE_COUNT: feature_count,
        **dict(zip(names(cache.past), past, strict=True)),
    }


class Backend(Protocol):
    """Runs the score graph; safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """What the graph runs on: "cpu", "cuda", "tensorrt" or "tensorrt-rtx"."""

    @property
    def token_budget(self) -> int:
        """How many tokens a batch should hold at most, padding included, to be quick."""

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Score right-padded `input_ids` [batch, sequence]; the mask is 1 on real tokens.

        Raises:
            BackendError: the engine failed or gave outputs of another shape.
        """


@runtime_checkable
class SpansBackend(Backend, Protocol):
    """A `Backend` that gives the mean of a text's spans from the pass over the text.

    `isinstance` tells it from others.
    """

    @property
    def reads_amid(self) -> bool:
        """Whether that is how spans are scored, as of a decoder. Where it is not, it tells which
        are worth reading by themselves: what stands around a span is in the tokens of an encoder.
        """

    def run_spans(
        self,
        input_ids: TokenArray,
        attention_mask: TokenArray,
        spans: Sequence[tuple[int, int, int]],
    ) -> tuple[Outputs, Outputs]:
        """Score right-padded texts and spans of their tokens, in one pass.

        Args:
            spans: one or more, each a row of `input_ids`, its first token and the one behind its
                last.

        Returns:
            What `run` gives, and the same with a row for each span. Only for heads that pool the
            mean.

        Raises:
            BackendError: as `run`.
        """


@runtime_checkable
class LeavingBackend(Backend, Protocol):
    """A `Backend` over the segments of a guard with exits: rows of a batch may leave between them.

    `isinstance` tells it from others.
    """

    @property
    def cascade(self) -> Cascade:
        """The exits."""

    def run_leaving(
        self, input_ids: TokenArray, attention_mask: TokenArray, leave: Leave
    ) -> tuple[TokenArray, Outputs | None]:
        """Score right-padded texts, [batch, sequence]; rows that leave are not run further.

        Args:
            leave: called behind each exit; what it says of a row is final.

        Returns:
            The rows that no exit decided on, int64 [rows], and what the whole guard gives for
            them; None where all have left.

        Raises:
            BackendError: the engine failed, or gave outputs of another shape.
        """


class StreamBackend(Protocol):
    """Runs the streaming graph and the head alone; safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """What the graphs run on, as `Backend.name`."""

    @property
    def token_budget(self) -> int:
        """As `Backend.token_budget`."""

    @property
    def cache(self) -> CacheSpec:
        """The shape of the key/value cache."""

    @property
    def head_spec(self) -> HeadSpec:
        """What the primary head reads, and how all of them pool."""

    @property
    def neurons(self) -> int:
        """How many neurons are pooled, for all heads together."""

    @property
    def max_tokens(self) -> int:
        """The tokens that a stream may hold."""

    @property
    def max_chunk(self) -> int:
        """The tokens of a stream that one step reads at most, to be quick or at all."""

    def step(
        self,
        input_ids: TokenArray,
        past_lengths: TokenArray,
        past: Sequence[CacheArray],
        feature_sum: FloatArray,
        feature_count: TokenArray,
        *,
        present: bool = True,
    ) -> StreamOutputs:
        """Read `input_ids` [batch, chunk] after the first `past_lengths` [batch] tokens of `past`.

        Args:
            feature_sum: [batch, neurons], over `feature_count` [batch] tokens.
            present: whether to return the chunk's keys and values, which costs a copy.

        Raises:
            BackendError: the engine failed.
        """

    def head(self, pooled: FloatArray) -> Outputs:
        """Evaluate the heads on `pooled` [batch, neurons], not weighted by layer.

        Raises:
            BackendError: the engine failed.
        """
