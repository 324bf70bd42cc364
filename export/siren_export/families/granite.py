"""Granite (dense, arXiv 2407.13739): Llama, with four multipliers.

    hidden = embed_tokens[input_ids] * embedding_multiplier
    each block adds residual_multiplier times what a block of Llama adds
    scores of attention are q k * attention_multiplier

The fourth is of the output's logits, which a guard does not have.
"""

from collections.abc import Mapping
from typing import Any

from .keys import check_keys
from .llama import Llama
from .parsing import DecoderConfig, PositiveFloat, Size, convert, decoder_fields, parse_rope

MODEL_TYPES = ("granite",)


class _Config(DecoderConfig, kw_only=True):
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: PositiveFloat = 1.0
    max_position_embeddings: Size = 2048


_HARMLESS = frozenset({"logits_scaling"})


def parse(config: Mapping[str, Any], origin: str) -> Llama:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    check_keys(config, _Config, origin, harmless=_HARMLESS)
    raw = convert(config, _Config, origin)
    return Llama(
        **decoder_fields(raw, origin),
        rope=parse_rope(raw, origin),
        qkv_bias=raw.attention_bias,
        output_bias=raw.attention_bias,
        mlp_bias=raw.mlp_bias,
        qk_norm=False,
        embedding_scale=raw.embedding_multiplier,
        residual_scale=raw.residual_multiplier,
        attention_scale=raw.attention_multiplier,
    )
