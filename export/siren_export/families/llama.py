"""The Llama family: Llama, Mistral, Qwen2 and Qwen3, from token ids to the tapped states.

    hidden = embed_tokens[input_ids]
    for each block:
        hidden += o_proj(attention(rope(q), rope(k), v))    on input_layernorm(hidden)
        hidden += down_proj(act(gate) * up)                 on post_attention_layernorm(hidden)

Right padding plus causal attention needs no attention mask: a real token never sees a trailing
pad. With a cache, the same blocks read a chunk of new tokens after those that the cache holds.

In float16 these stay in float32: the residual stream, whose massive activations (arXiv
2402.17762) exceed 65504 in some models; the norms, which square it; and the rotary tables'
making. The MLP's product is kept from overflowing by a power of two instead (see `gated_mlp`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import onnx_ir as ir

from siren_export.graph.attention import shorter
from siren_export.graph.builder import FLOAT, GraphBuilder
from siren_export.graph.cache import KeyValueCache
from siren_export.graph.embedding import embed_tokens
from siren_export.graph.mlp import gated_mlp
from siren_export.graph.norms import rms_norm
from siren_export.graph.rotary import Rope, rotary_tables
from siren_export.graph.self_attention import norm_heads, self_attention
from siren_export.graph.taps import Taps
from siren_export.graph.weights import BackboneWeights
from siren_runtime.errors import CheckpointError

from .keys import check_keys
from .parsing import (
    PositiveFloat,
    Size,
    check_heads,
    convert,
    parse_layer_types,
    parse_rope,
)

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Llama:
    """Llama, Mistral, Qwen2 or Qwen3. Biases are flags; sizes are channels.

    Attributes:
        windows: block -> the tokens that a token sees there; the others see all before them.
        prefixes: that the stored names of the weights may have.
        embedding_scale, residual_scale, attention_scale: Granite's, of the embedding, of what a
            block adds to the residual stream, and of the scores of attention (None: as in Llama).
        unturned: the blocks without a rope, which SmolLM3 has.
        fused: whether queries, keys and values, and gate and up, are stored as one, as in Phi-3.
        rotary_dim: how many channels of a head turn, the first ones; None: all.
        longest: the longest sequence at which the rope is exact; None: there is no limit.
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
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: Mapping[int, int]
    max_position_embeddings: int
    tied_embeddings: bool
    prefixes: tuple[str, ...] = ("model.",)
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    unturned: frozenset[int] = frozenset()
    fused: bool = False
    rotary_dim: int | None = None
    longest: int | None = None

    causal = True

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens, that the model was made for."""
        return self.longest or self.max_position_embeddings

    @property
    def block_parameters(self) -> int:
        """The elements of a block's matrices."""
        heads = 2 * self.attention_heads + 2 * self.kv_heads
        return self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)

    def check_max_length(self, max_length: int, origin: str) -> None:
        """As `Backbone.check_max_length`: the rope may change with the length of a text."""
        if self.longest is not None and max_length > self.longest:
            raise CheckpointError(
                f"{origin}: the head's max_length {max_length} exceeds "
                f"original_max_position_embeddings {self.longest}, beyond which longrope turns "
                "all tokens otherwise; lower inference.max_length in the artifact"
            )

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
        """As `Backbone.author`; the mask is not looked at."""
        weights.check_prefix(*self.prefixes)
        table = (self.vocab_size, self.hidden_size)
        hidden = embed_tokens(g, weights, input_ids, table, tied=self.tied_embeddings)
        hidden = _scaled(g, hidden, self.embedding_scale)
        arguments = input_ids, max_length, cache, self.rotary_dim
        rotary = rotary_tables(g, self.rope, self.head_dim, *arguments)
        windows = shorter(self.windows, max_length)

        states: dict[int, ir.Value] = {}
        for block in range(taps.deepest + 1):
            with g.scope(f"layers.{block}"):
                x = _norm(g, self, weights, hidden, f"layers.{block}.input_layernorm")
                x = self_attention(
                    g,
                    weights,
                    g.to_compute(x),
                    block,
                    hidden_size=self.hidden_size,
                    heads=self.attention_heads,
                    kv_heads=self.kv_heads,
                    head_dim=self.head_dim,
                    rotary=None if block in self.unturned else rotary,
                    qkv_bias=self.qkv_bias,
                    output_bias=self.output_bias,
                    fused=self.fused,
                    norm=partial(_head_norm, g, self, weights, block) if self.qk_norm else None,
                    cache=cache,
                    window=windows.get(block),
                    scale=self.attention_scale,
                )
                x = _scaled(g, g.to_float(x), self.residual_scale)
                hidden = g.op("Add", hidden, x, name="attention_residual")

                x = _norm(g, self, weights, hidden, f"layers.{block}.post_attention_layernorm")
                mlp = _mlp(g, self, weights, g.to_compute(x), block)
                if taps.reads_mlp(block):
                    states[block] = mlp
                    if block == taps.deepest:
                        break
                x = _scaled(g, mlp, self.residual_scale)
                hidden = g.op("Add", hidden, x, name="mlp_residual")
            if taps.reads_residual(block):
                last = taps.final_norm and block == self.blocks - 1
                states[block] = _norm(g, self, weights, hidden, "norm") if last else hidden
        return states


def _scaled(g: GraphBuilder, x: ir.Value, scale: float) -> ir.Value:
    return x if scale == 1.0 else g.op("Mul", x, g.const(scale, FLOAT), name="scaled")


def _head_norm(
    g: GraphBuilder, config: Llama, weights: BackboneWeights, block: int, part: str, y: ir.Value
) -> ir.Value:
    """RMSNorm over the channels of each head of queries or keys."""
    name = f"layers.{block}.self_attn.{part}_norm"
    heads = config.attention_heads if part == "q" else config.kv_heads
    norm = partial(_norm, g, config, weights, name=name, size=config.head_dim)
    return norm_heads(g, y, heads, config.head_dim, norm)


def _mlp(
    g: GraphBuilder, config: Llama, weights: BackboneWeights, x: ir.Value, block: int
) -> ir.Value:
    """x [batch, sequence, hidden] in the compute dtype to float32 of that shape."""
    return gated_mlp(
        g,
        weights,
        f"layers.{block}.mlp",
        x,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        hidden_act=config.hidden_act,
        bias=config.mlp_bias,
        fused="gate_up_proj" if config.fused else None,
    )


def _norm(
    g: GraphBuilder,
    config: Llama,
    weights: BackboneWeights,
    x: ir.Value,
    name: str,
    size: int | None = None,
) -> ir.Value:
    """RMSNorm over `size` channels, by default those of the residual stream."""
    scale = weights.vector(f"{name}.weight", size or config.hidden_size, FLOAT)
    return rms_norm(g, x, name.rpartition(".")[2], scale, config.rms_norm_eps)


class _Config(msgspec.Struct):
    model_type: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | msgspec.UnsetType | None = msgspec.UNSET
    head_dim: Size | None = None
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: Size | msgspec.UnsetType | None = msgspec.UNSET
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    max_position_embeddings: Size | msgspec.UnsetType = msgspec.UNSET
    original_max_position_embeddings: Size | msgspec.UnsetType = msgspec.UNSET
    rope_theta: PositiveFloat | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False


_CONTEXTS = {"llama": 2048, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768}
# Left in config.json by the tools that some published decoders came from; transformers has none
# of them. `max_sequence_length` is what Llama 1 calls its context.
_HARMLESS = frozenset({"max_sequence_length"})
_FIXED = {
    "is_causal": (True,),
    "partial_rotary_factor": (1.0, None),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
}


def parse(config: Mapping[str, Any], origin: str) -> Llama:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    check_keys(config, _Config, origin, harmless=_HARMLESS, fixed=_FIXED)
    raw = convert(config, _Config, origin)
    _check_layer_types(raw, origin)
    kv_heads = raw.num_key_value_heads
    if kv_heads is msgspec.UNSET:
        kv_heads = {"llama": None, "mistral": 8}.get(raw.model_type, 32)
    kv_heads = kv_heads or raw.num_attention_heads
    context = raw.max_position_embeddings
    if context is msgspec.UNSET:
        context = _CONTEXTS[raw.model_type]
    default_dim = 128 if raw.model_type == "qwen3" else raw.hidden_size // raw.num_attention_heads
    head_dim = raw.head_dim or default_dim
    check_heads(raw.num_attention_heads, kv_heads, head_dim, origin)
    # Mistral has no attention biases and Qwen2 always q/k/v ones, whatever config.json says.
    flag = raw.attention_bias and raw.model_type in ("llama", "qwen3")
    return Llama(
        model_type=raw.model_type,
        vocab_size=raw.vocab_size,
        hidden_size=raw.hidden_size,
        intermediate_size=raw.intermediate_size,
        blocks=raw.num_hidden_layers,
        attention_heads=raw.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden_act=raw.hidden_act,
        rms_norm_eps=raw.rms_norm_eps,
        rope=parse_rope(
            raw.rope_scaling,
            raw.rope_parameters,
            rope_theta=raw.rope_theta,
            original_max_position_embeddings=(
                None
                if raw.original_max_position_embeddings is msgspec.UNSET
                else raw.original_max_position_embeddings
            ),
            max_position_embeddings=context,
            origin=origin,
        ),
        qkv_bias=flag or raw.model_type == "qwen2",
        output_bias=flag,
        mlp_bias=raw.mlp_bias and raw.model_type == "llama",
        qk_norm=raw.model_type == "qwen3",
        windows=_windows(raw),
        max_position_embeddings=context,
        tied_embeddings=raw.tie_word_embeddings,
    )


def _check_layer_types(raw: _Config, origin: str) -> None:
    """Refuse layers of kinds that the model does not have, or that contradict its window."""
    if raw.model_type == "mistral" and raw.layer_types is not None and _window(raw) is not None:
        raise CheckpointError(
            f"{origin}: layer_types beside sliding_window makes another model of a Mistral in "
            "transformers (Ministral), which is not supported; remove one of them"
        )
    slides = raw.model_type in ("qwen2", "qwen3") and raw.use_sliding_window
    slides = slides and raw.sliding_window is not None
    allowed = ("full_attention", "sliding_attention")[: 1 + slides]
    parse_layer_types(raw.layer_types, allowed, raw.num_hidden_layers, origin)


def _window(raw: _Config) -> int | None:
    return 4096 if raw.sliding_window is msgspec.UNSET else raw.sliding_window


def _windows(raw: _Config) -> dict[int, int]:
    """The attention windows of the blocks that have one."""
    window = _window(raw)
    blocks = range(raw.num_hidden_layers)
    if raw.model_type == "llama" or window is None:
        return {}
    if raw.model_type == "mistral":
        return dict.fromkeys(blocks, window)
    if not raw.use_sliding_window:
        return {}
    if raw.layer_types is None:
        return dict.fromkeys(blocks[max(raw.max_window_layers, 0) :], window)
    kinds = enumerate(raw.layer_types)
    return {block: window for block, kind in kinds if kind == "sliding_attention"}
