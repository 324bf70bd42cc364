"""The one contract of tensors: names, dtypes and shapes of every graph's inputs and outputs.

The exporter authors graphs by it, manifests are checked against it, and backends feed them by it.

score:   input_ids, attention_mask int64 [batch, sequence], right-padded
         -> score float32 [batch], logits [batch, classes], features [batch, n_features]
spans:   the same, and spans float32 [batch, spans, sequence], 1 on the tokens of each; of encoders
         -> as score, of rows [batch x spans], text by text: what the mean over a span's tokens,
         which are read amid their text, makes of it
stream:  input_ids int64 [batch, chunk]; past_lengths int64 [batch], how many tokens of
         past.{block}.key/value [batch, kv_heads, past, head_dim] count; feature_sum float32
         [batch, n_features], the sums of the neurons over feature_count int64 [batch] tokens
         -> of each prefix that ends in the chunk score float32 [batch, chunk], logits
         [batch, chunk, classes], feature_sums [batch, chunk, n_features]; and the chunk's own
         present.{block}.key/value [batch, kv_heads, chunk, head_dim], to be kept behind the past
head:    pooled float32 [batch, n_features], not weighted by layer
         -> as score

explain.NAME, of each head: features float32 [batch, n_features]; direction float32 [batch,
         classes], the factor of each logit
         -> value float32 [batch], the logits along it; gradients float32 [batch, n_features], its
         own by the features; neurons int64 [n_features, 3], of each feature the block, the channel,
         and the place among pooled neurons; layer_weights float32 [n_features], of its block; and
         of a polynomial's term of second order, which is the sum over r of pair_factors[0, r]
         (pair_directions[r] standardized)^2: standardized float32 [batch, n_features],
         pair_factors float32 [1, rank], pair_directions float32 [rank, n_features]

cascade.N, the segments of score, cut behind the blocks that each exit reads (`cascade`): input_ids
         and attention_mask, and the states that are kept, float32 [batch, ...], under their names
         -> exit.DEPTH float32 [batch], the exit's score, or of the last one as score; and states
stream.N, those of stream: input_ids, past_lengths, feature_sum, feature_count, past of the
         segment's blocks, and the states that are kept, float32 [batch, chunk, ...]
         -> exit.DEPTH float32 [batch, chunk], or of the last one score and logits;
         feature_sums.DEPTH, of the neurons of its blocks, where there are any; present; and states
stream.head, as head, of the neurons that the segments sum: the exits' among them

These are the primary head's. Of each further one, score and head give heads.NAME.score,
heads.NAME.logits and heads.NAME.features beside; a stream's further heads are read off its sums by
head. What is summed and pooled is then what all heads read together, [..., neurons]: each takes
its own of it.

The cache is float32 or float16. Where a head reads the last token, feature_sums are the neurons of
each token itself.

A block whose tokens see no further back than a window of n, themselves included, calls its past
window_n. It is a ring: token p lies at p modulo the length of the buffer, which holds n - 1 tokens
at least, or all.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from siren_runtime.errors import BundleError

from .heads import HeadSpec
from .types import Positive, Strict

BATCH: Final = "batch"
SEQUENCE: Final = "sequence"
CHUNK: Final = "chunk"
PAST: Final = "past"

INPUT_IDS: Final = "input_ids"
ATTENTION_MASK: Final = "attention_mask"
PAST_LENGTHS: Final = "past_lengths"
FEATURE_SUM: Final = "feature_sum"
FEATURE_COUNT: Final = "feature_count"
POOLED: Final = "pooled"
SPANS: Final = "spans"  # the graph, and its input

SCORE: Final = "score"
LOGITS: Final = "logits"
FEATURES: Final = "features"
FEATURE_SUMS: Final = "feature_sums"

DIRECTION: Final = "direction"
VALUE: Final = "value"
GRADIENTS: Final = "gradients"
NEURONS: Final = "neurons"
LAYER_WEIGHTS: Final = "layer_weights"
STANDARDIZED: Final = "standardized"
PAIR_FACTORS: Final = "pair_factors"
PAIR_DIRECTIONS: Final = "pair_directions"

STREAM_HEAD: Final = "stream.head"  # what the manifest calls the head of the segments

_BYTES = {"float32": 4, "float16": 2}
_WINDOW = "window_"  # and the tokens that a token sees
# Tokens that a ring holds beyond its window, so that as many may be taken back; and its steps.
_TAKEN_BACK, _GRANULE = 32, 16
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")

Heads = Mapping[str, HeadSpec]  # by name, the primary one first
Shape = list[int | str]  # a dimension is a size or the name of a free one


class TensorSpec(Strict, frozen=True):
    """A graph input or output. A dimension is a size or the name of a free one."""

    name: str
    dtype: str
    shape: Shape


class GraphSpec(Strict, frozen=True):
    """One ONNX graph of the bundle."""

    file: str
    opset: Positive
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


@dataclass(frozen=True)
class Contract:
    """The inputs and outputs of one graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class CacheSpec:
    """The key/value cache of the streaming graph: what each of `blocks` keeps of a token.

    `windows` are of the blocks whose tokens see no further back: block -> tokens.
    """

    blocks: int
    heads: int
    dim: int
    dtype: str
    windows: Mapping[int, int] = field(default_factory=dict)

    @property
    def buffers(self) -> int:
        """How many arrays hold it: keys and values of each block."""
        return 2 * self.blocks

    @property
    def bytes_per_token(self) -> int:
        """What one token of one stream takes, in bytes, where every block holds it."""
        return self.buffers * self.heads * self.dim * _BYTES[self.dtype]

    def lengths(self, tokens: int) -> list[int]:
        """How many tokens each array holds where the longest hold `tokens`, in their order."""
        return [
            size_of(_past(self.windows.get(block)), tokens)
            for block in range(self.blocks)
            for _ in ("key", "value")
        ]

    def usable(self, tokens: int, written: int) -> int:
        """How many of a stream's first `tokens` need not be read again: all of them, or none.

        Args:
            written: the most tokens that the stream held since it was empty. Those taken back
                since lie where rings held older ones.
        """
        for window in set(self.windows.values()):
            held = _ring(window)
            if written > held and written - tokens > held - window + 1:
                return 0
        return tokens

    @property
    def past(self) -> list[TensorSpec]:
        """The inputs that hold it, key before value, block by block."""
        return self._specs(PAST, {block: _past(window) for block, window in self.windows.items()})

    @property
    def present(self) -> list[TensorSpec]:
        """The outputs that a chunk adds to it, in the order of `past`."""
        return self._specs("present", dict.fromkeys(range(self.blocks), CHUNK))

    def _specs(self, prefix: str, tokens: Mapping[int, str]) -> list[TensorSpec]:
        return [
            TensorSpec(
                cache_name(prefix, block, part),
                self.dtype,
                [BATCH, self.heads, tokens.get(block, PAST), self.dim],
            )
            for block in range(self.blocks)
            for part in ("key", "value")
        ]


def _past(window: int | None) -> str:
    """The name of the dimension of a block's past."""
    return PAST if window is None else f"{_WINDOW}{window}"


def _window(past: int | str) -> int | None:
    """The window that the name of such a dimension tells of, where it does."""
    if not isinstance(past, str) or not past.startswith(_WINDOW):
        return None
    number = past.removeprefix(_WINDOW)
    return int(number) if _NUMBER.fullmatch(number) else None


def _ring(window: int) -> int:
    """How many tokens a block with that window keeps."""
    return -(-(window - 1 + _TAKEN_BACK) // _GRANULE) * _GRANULE


def size_of(past: str, tokens: int) -> int:
    """How long a past of that name is where the longest are `tokens` long."""
    if past == PAST:
        return tokens
    window = _window(past)
    if window is None:
        raise KeyError(past)
    return min(tokens, _ring(window))


def cache_name(prefix: str, block: int, part: str) -> str:
    """The name of a block's "key" or "value": `prefix` is "past" or "present"."""
    return f"{prefix}.{block}.{part}"


def score_graph(heads: Heads) -> Contract:
    """The contract of score.onnx, of heads by name, the primary one first."""
    tokens: Shape = [BATCH, SEQUENCE]
    inputs = (TensorSpec(INPUT_IDS, "int64", tokens), TensorSpec(ATTENTION_MASK, "int64", tokens))
    return Contract(inputs, _of_heads(heads))


def spans_graph(heads: Heads) -> Contract:
    """The contract of spans.onnx, of the heads of score.onnx."""
    spans = TensorSpec(SPANS, "float32", [BATCH, "spans", SEQUENCE])
    return Contract((*score_graph(heads).inputs, spans), _of_heads(heads, "rows"))


def head_graph(heads: Heads, neurons: int) -> Contract:
    """The contract of head.onnx.

    Args:
        neurons: that are pooled for all heads together.
    """
    pooled = TensorSpec(POOLED, "float32", [BATCH, neurons])
    return Contract((pooled,), _of_heads(heads))


def stream_graph(head: HeadSpec, neurons: int, cache: CacheSpec) -> Contract:
    """The contract of stream.onnx, which has the primary head's scores; head.onnx has the others'.

    Args:
        neurons: as `head_graph`.
    """
    inputs = (
        TensorSpec(INPUT_IDS, "int64", [BATCH, CHUNK]),
        TensorSpec(PAST_LENGTHS, "int64", [BATCH]),
        TensorSpec(FEATURE_SUM, "float32", [BATCH, neurons]),
        TensorSpec(FEATURE_COUNT, "int64", [BATCH]),
        *cache.past,
    )
    outputs = (
        TensorSpec(SCORE, "float32", [BATCH, CHUNK]),
        TensorSpec(LOGITS, "float32", [BATCH, CHUNK, head.classes]),
        TensorSpec(FEATURE_SUMS, "float32", [BATCH, CHUNK, neurons]),
        *cache.present,
    )
    return Contract(inputs, outputs)


def _of_heads(heads: Heads, rows: str = BATCH) -> tuple[TensorSpec, ...]:
    """What each head gives of each row of a batch."""

    def shape(head: HeadSpec, part: str) -> Shape:
        sizes: Shape = [head.classes if part == LOGITS else head.features]
        return [rows, *([] if part == SCORE else sizes)]

    return tuple(
        TensorSpec(output_name(heads, name, part), "float32", shape(head, part))
        for name, head in heads.items()
        for part in (SCORE, LOGITS, FEATURES)
    )


def cascade_name(number: int) -> str:
    """What the manifest calls a segment of the graph of whole texts."""
    return f"cascade.{number}"


def exit_spec(depth: int) -> TensorSpec:
    """The score of the exit behind so many blocks."""
    return TensorSpec(f"exit.{depth}", "float32", [BATCH])


def stream_name(number: int) -> str:
    """What the manifest calls a segment of the streaming graph."""
    return f"stream.{number}"


def sums_spec(depth: int, neurons: int) -> TensorSpec:
    """The running sums of the neurons between the last exit and so many blocks."""
    return TensorSpec(f"{FEATURE_SUMS}.{depth}", "float32", [BATCH, CHUNK, neurons])


def explain_name(head: str) -> str:
    """What the manifest calls the graph that gives a head's gradients."""
    return f"explain.{head}"


def explain_graph(head: HeadSpec) -> Contract:
    """The contract of a head's explain graph."""
    inputs = (
        TensorSpec(FEATURES, "float32", [BATCH, head.features]),
        TensorSpec(DIRECTION, "float32", [BATCH, head.classes]),
    )
    outputs = (
        TensorSpec(VALUE, "float32", [BATCH]),
        TensorSpec(GRADIENTS, "float32", [BATCH, head.features]),
        TensorSpec(NEURONS, "int64", [head.features, 3]),
        TensorSpec(LAYER_WEIGHTS, "float32", [head.features]),
    )
    pairs = (
        TensorSpec(STANDARDIZED, "float32", [BATCH, head.features]),
        TensorSpec(PAIR_FACTORS, "float32", [1, head.rank]),
        TensorSpec(PAIR_DIRECTIONS, "float32", [head.rank, head.features]),
    )
    return Contract(inputs, (*outputs, *(pairs if head.rank else ())))


def output_name(heads: Heads, head: str, part: str) -> str:
    """What graphs call an output of a head: the primary one's have plain names."""
    return part if head == next(iter(heads)) else f"heads.{head}.{part}"


def score_names(specs: Iterable[TensorSpec]) -> list[str]:
    """The names of those outputs that are scores, the primary head's first."""
    return [spec.name for spec in specs if spec.name.rpartition(".")[2] == SCORE]


def cache_of(graph: GraphSpec) -> CacheSpec | None:
    """The cache that a streaming graph takes; None where its inputs hold no usable one."""
    past = [spec for spec in graph.inputs if spec.name.startswith(f"{PAST}.")]
    if not past or past[0].dtype not in _BYTES or len(past[0].shape) != 4:
        return None
    _, heads, _, dim = past[0].shape
    if not isinstance(heads, int) or not isinstance(dim, int):
        return None
    found = {spec.name: _window(spec.shape[2]) for spec in past if len(spec.shape) == 4}
    windows = {block: found.get(cache_name(PAST, block, "key")) for block in range(len(past) // 2)}
    kept = {block: window for block, window in windows.items() if window is not None}
    return CacheSpec(len(past) // 2, heads, dim, past[0].dtype, kept)


def signature(specs: Iterable[TensorSpec]) -> list[str]:
    """Return what must agree of inputs or outputs, sorted: names, types, ranks, fixed sizes.

    Windows must agree too.
    """

    def shown(size: int | str) -> str:
        return str(size) if isinstance(size, int) or _window(size) is not None else "?"

    return sorted(
        f"{spec.name}: {spec.dtype}[{', '.join(map(shown, spec.shape))}]" for spec in specs
    )


def check_contract(
    graphs: Mapping[str, GraphSpec], name: str, contract: Contract, origin: str
) -> None:
    """Refuse a graph of the manifest `origin` that does not keep its contract.

    Raises:
        BundleError: its inputs or outputs are others.
    """
    graph = graphs[name]
    for kind, found, expected in (
        ("inputs", graph.inputs, contract.inputs),
        ("outputs", graph.outputs, contract.outputs),
    ):
        if signature(found) != signature(expected):
            raise BundleError(
                f"{origin}: graphs.{name}.{kind} are {signature(found)}, "
                f"expected {signature(expected)}"
            )


def names(specs: Sequence[TensorSpec]) -> list[str]:
    """The names of inputs or outputs, in order."""
    return [spec.name for spec in specs]
