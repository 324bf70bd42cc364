"""Granite (dense, arXiv 2407.13739): Llama, with four multipliers.

    hidden = embed_tokens[input_ids] * embedding_multiplier
    each block adds residual_multiplier times what a block of Llama adds
    scores of attention are q k * attention_multiplier

The fourth is of the output's logits, which a guard does not have.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from .keys import check_keys
from .llama import Llama
from .parsing import PositiveFloat, Size, check_heads, convert, parse_rope

MODEL_TYPES = ("granite",)


class _Config(msgspec.Struct):
    model_type: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: PositiveFloat = 1.0
    max_position_embeddings: Size = 2048
    rope_theta: PositiveFloat | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False


_HARMLESS = frozenset({"logits_scaling"})


def parse(config: Mapping[str, Any], origin: str) -> Llama:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    check_keys(config, _Config, origin, harmless=_HARMLESS)
    raw = convert(config, _Config, origin)
    kv_heads = raw.num_key_value_heads or raw.num_attention_heads
    head_dim = raw.head_dim or raw.hidden_size // raw.num_attention_heads
    check_heads(raw.num_attention_heads, kv_heads, head_dim, origin)
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
            original_max_position_embeddings=None,
            max_position_embeddings=raw.max_position_embeddings,
            origin=origin,
        ),
        qkv_bias=raw.attention_bias,
        output_bias=raw.attention_bias,
        mlp_bias=raw.mlp_bias,
        qk_norm=False,
        windows={},
        max_position_embeddings=raw.max_position_embeddings,
        tied_embeddings=raw.tie_word_embeddings,
        embedding_scale=raw.embedding_multiplier,
        residual_scale=raw.residual_multiplier,
        attention_scale=raw.attention_multiplier,
    )
