"""The one contract of tensors: names, dtypes and shapes of every graph's inputs and outputs.

The exporter authors graphs by it, manifests are checked against it, and backends feed them by it.

score:   input_ids, attention_mask int64 [batch, sequence], right-padded
         -> score float32 [batch], logits [batch, classes], features [batch, n_features]
stream:  input_ids int64 [batch, chunk]; past_lengths int64 [batch], how many tokens of
         past.{block}.key/value [batch, kv_heads, past, head_dim] count; feature_sum float32
         [batch, n_features], the sums of the neurons over feature_count int64 [batch] tokens
         -> of each prefix that ends in the chunk score float32 [batch, chunk], logits
         [batch, chunk, classes], feature_sums [batch, chunk, n_features]; and the chunk's own
         present.{block}.key/value [batch, kv_heads, chunk, head_dim], to be kept behind the past
head:    pooled float32 [batch, n_features], not weighted by layer
         -> as score

The cache is float32 or float16. Where a head reads the last token, feature_sums are the neurons of
each token itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

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

SCORE: Final = "score"
LOGITS: Final = "logits"
FEATURES: Final = "features"
FEATURE_SUMS: Final = "feature_sums"

_BYTES = {"float32": 4, "float16": 2}

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
    """The key/value cache of the streaming graph: what each of `blocks` keeps of a token."""

    blocks: int
    heads: int
    dim: int
    dtype: str

    @property
    def buffers(self) -> int:
        """How many arrays hold it: keys and values of each block."""
        return 2 * self.blocks

    @property
    def bytes_per_token(self) -> int:
        """What one token of one stream takes, in bytes."""
        return self.buffers * self.heads * self.dim * _BYTES[self.dtype]

    @property
    def past(self) -> list[TensorSpec]:
        """The inputs that hold it, key before value, block by block."""
        return self._specs(PAST)

    @property
    def present(self) -> list[TensorSpec]:
        """The outputs that a chunk adds to it, in the order of `past`."""
        return self._specs("present", CHUNK)

    def _specs(self, prefix: str, tokens: str = PAST) -> list[TensorSpec]:
        shape: Shape = [BATCH, self.heads, tokens, self.dim]
        return [
            TensorSpec(cache_name(prefix, block, part), self.dtype, shape)
            for block in range(self.blocks)
            for part in ("key", "value")
        ]


def cache_name(prefix: str, block: int, part: str) -> str:
    """The name of a block's "key" or "value": `prefix` is "past" or "present"."""
    return f"{prefix}.{block}.{part}"


def score_graph(head: HeadSpec) -> Contract:
    """The contract of score.onnx."""
    tokens: Shape = [BATCH, SEQUENCE]
    inputs = (TensorSpec(INPUT_IDS, "int64", tokens), TensorSpec(ATTENTION_MASK, "int64", tokens))
    return Contract(inputs, _head_outputs(head))


def head_graph(head: HeadSpec) -> Contract:
    """The contract of head.onnx."""
    pooled = TensorSpec(POOLED, "float32", [BATCH, head.features])
    return Contract((pooled,), _head_outputs(head))


def stream_graph(head: HeadSpec, cache: CacheSpec) -> Contract:
    """The contract of stream.onnx."""
    inputs = (
        TensorSpec(INPUT_IDS, "int64", [BATCH, CHUNK]),
        TensorSpec(PAST_LENGTHS, "int64", [BATCH]),
        TensorSpec(FEATURE_SUM, "float32", [BATCH, head.features]),
        TensorSpec(FEATURE_COUNT, "int64", [BATCH]),
        *cache.past,
    )
    outputs = (
        TensorSpec(SCORE, "float32", [BATCH, CHUNK]),
        TensorSpec(LOGITS, "float32", [BATCH, CHUNK, head.classes]),
        TensorSpec(FEATURE_SUMS, "float32", [BATCH, CHUNK, head.features]),
        *cache.present,
    )
    return Contract(inputs, outputs)


def _head_outputs(head: HeadSpec) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec(SCORE, "float32", [BATCH]),
        TensorSpec(LOGITS, "float32", [BATCH, head.classes]),
        TensorSpec(FEATURES, "float32", [BATCH, head.features]),
    )


def cache_of(graph: GraphSpec) -> CacheSpec | None:
    """The cache that a streaming graph takes; None where its inputs hold no usable one."""
    past = [spec for spec in graph.inputs if spec.name.startswith(f"{PAST}.")]
    if not past or past[0].dtype not in _BYTES or len(past[0].shape) != 4:
        return None
    _, heads, _, dim = past[0].shape
    if not isinstance(heads, int) or not isinstance(dim, int):
        return None
    return CacheSpec(len(past) // 2, heads, dim, past[0].dtype)


def signature(specs: Iterable[TensorSpec]) -> list[str]:
    """Return what must agree of inputs or outputs, sorted: names, types, ranks, fixed sizes."""
    return sorted(
        f"{spec.name}: {spec.dtype}"
        f"[{', '.join(str(size) if isinstance(size, int) else '?' for size in spec.shape)}]"
        for spec in specs
    )


def names(specs: Sequence[TensorSpec]) -> list[str]:
    """The names of inputs or outputs, in order."""
    return [spec.name for spec in specs]
