"""What a backbone family gives to the rest: its config, read, and the author of its blocks.

A family is one file. Its config is a frozen dataclass that is a `Backbone`; a `parse` function
makes one of config.json; `registry` lists it. Nothing else knows of it.
"""

from collections.abc import Mapping
from typing import Protocol

import onnx_ir as ir

from siren_export.graph.builder import GraphBuilder
from siren_export.graph.cache import KeyValueCache
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
