"""What a backbone family gives to the rest: its config, read, and the author of its blocks.

A family is one file. Its config is a frozen dataclass that is a `Backbone`: a `Decoder` or an
`Encoder`, with what is the family's own. A `parse` function makes one of config.json; `registry`
lists it. Nothing else knows of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import onnx_ir as ir

from siren_export.graph.builder import GraphBuilder
from siren_export.graph.cache import KeyValueCache
from siren_export.graph.rotary import Rope
from siren_export.graph.taps import Taps
from siren_export.graph.weights import BackboneWeights


class StateSource(Protocol):
    """What gives a head the states that it reads. Every property is plain data."""

    @property
    def model_type(self) -> str:
        """As in config.json."""

    @property
    def hidden_size(self) -> int:
        """The channels of the residual stream."""

    @property
    def vocab_size(self) -> int | None:
        """The rows of the token embedding; None where that is not known."""

    @property
    def blocks(self) -> int:
        """How many blocks the model has."""

    @property
    def causal(self) -> bool:
        """Whether a token sees none after it."""

    @property
    def context_length(self) -> int | None:
        """The longest sequence, in tokens, that a stream holds; None where there is no stream."""

    def check_max_length(self, max_length: int, origin: str) -> None:
        """Refuse a token limit at which the graph would not be exact; `origin` is for the error.

        Raises:
            CheckpointError: the head reads further than the model is exact.
        """

    def author(
        self,
        g: GraphBuilder,
        weights: BackboneWeights,
        input_ids: ir.Value,
        attention_mask: ir.Value | None,
        taps: Taps,
        max_length: int,
        cache: KeyValueCache | None = None,
    ) -> dict[int, ir.Value]:
        """Author the blocks up to the deepest tap.

        Args:
            input_ids: int64 [batch, sequence].
            attention_mask: int64 [batch, sequence], 1 for real tokens; None with a cache.
            taps: which blocks are read, and what of them.
            max_length: the longest sequence, in tokens, those in the cache included.
            cache: what the tokens before `input_ids` left, where there are some; only where
                `context_length` is not None.

        Returns:
            block -> tapped float32 states [batch, sequence, hidden].

        Raises:
            CheckpointError: a tensor is missing or of another shape than the config says.
        """


class Backbone(StateSource, Protocol):
    """A backbone as its config.json has it, whose graph is authored here. Sizes are channels."""

    @property
    def vocab_size(self) -> int:
        """The rows of the token embedding."""

    @property
    def attention_heads(self) -> int:
        """The heads of queries."""

    @property
    def kv_heads(self) -> int:
        """The heads of keys and values."""

    @property
    def head_dim(self) -> int:
        """The channels of a head."""

    @property
    def hidden_act(self) -> str:
        """The activation function, by the name that transformers has for it."""

    @property
    def block_parameters(self) -> int:
        """The elements of a block's matrices."""

    @property
    def windows(self) -> Mapping[int, int]:
        """Of a decoder, the blocks in which a token does not see all before it.

        Block -> the tokens that it sees, itself included.
        """


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The part of a `Backbone` that all decoders have. Sizes are channels.

    Attributes:
        windows: block -> the tokens that a token sees there; the others see all before them.
        prefixes: that the stored names of the weights may have.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    blocks: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    rope: Rope
    windows: Mapping[int, int] = field(default_factory=dict)
    max_position_embeddings: int
    tied_embeddings: bool
    prefixes: tuple[str, ...] = ("model.",)

    causal = True

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens, that the model was made for."""
        return self.max_position_embeddings

    @property
    def block_parameters(self) -> int:
        """The elements of a block's matrices."""
        heads = 2 * self.attention_heads + 2 * self.kv_heads
        return self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)

    def check_max_length(self, max_length: int, origin: str) -> None:
        """As `Backbone.check_max_length`: the graph is exact at any length."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The part of a `Backbone` that all encoders have. Sizes are channels."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    blocks: int
    attention_heads: int
    hidden_act: str

    causal = False
    context_length = None
    windows: ClassVar[Mapping[int, int]] = {}

    @property
    def kv_heads(self) -> int:
        """As many as queries have."""
        return self.attention_heads

    @property
    def head_dim(self) -> int:
        """The channels of a head."""
        return self.hidden_size // self.attention_heads

    @property
    def block_parameters(self) -> int:
        """The elements of a block's matrices, where its MLP has no gate."""
        return self.hidden_size * (4 * self.hidden_size + 2 * self.intermediate_size)
