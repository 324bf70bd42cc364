"""SmolLM3: Llama, with blocks that turn neither queries nor keys (arXiv 2501.18795).

Such a block sees where tokens stand by causality alone. By default it is every fourth one.
"""

from collections.abc import Mapping
from typing import Any

from siren_runtime.errors import CheckpointError

from .keys import check_keys
from .llama import Llama
from .parsing import (
    DecoderConfig,
    Size,
    convert,
    decoder_fields,
    parse_layer_types,
    parse_rope,
)

MODEL_TYPES = ("smollm3",)
_KINDS = ("full_attention", "sliding_attention")


class _Config(DecoderConfig, kw_only=True):
    vocab_size: Size = 128256
    hidden_size: Size = 2048
    intermediate_size: Size = 11008
    num_hidden_layers: Size = 36
    num_attention_heads: Size = 16
    num_key_value_heads: Size | None = 4
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    layer_types: list[str] | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: Size = 4
    max_position_embeddings: Size = 32768
    tie_word_embeddings: bool = True


_HARMLESS = frozenset({"max_window_layers"})  # transformers goes by layer_types


def parse(config: Mapping[str, Any], origin: str) -> Llama:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    check_keys(config, _Config, origin, harmless=_HARMLESS)
    raw = convert(config, _Config, origin)
    fields = decoder_fields(raw, origin)
    unturned = _unturned(raw, origin)
    return Llama(
        **fields,
        rope=parse_rope(raw, origin, default_theta=2_000_000.0),
        qkv_bias=raw.attention_bias,
        output_bias=raw.attention_bias,
        mlp_bias=raw.mlp_bias,
        qk_norm=False,
        windows=_windows(raw, unturned, origin),
        unturned=unturned,
    )


def _unturned(raw: _Config, origin: str) -> frozenset[int]:
    """The blocks of which `no_rope_layers` says 0, which means that they have no rope."""
    flags = raw.no_rope_layers
    if flags is None:
        flags = [(b + 1) % raw.no_rope_layer_interval for b in range(raw.num_hidden_layers)]
    if len(flags) != raw.num_hidden_layers:
        raise CheckpointError(
            f"{origin}: no_rope_layers has {len(flags)} entries; num_hidden_layers is "
            f"{raw.num_hidden_layers}"
        )
    return frozenset(block for block, turned in enumerate(flags) if not turned)


def _windows(raw: _Config, unturned: frozenset[int], origin: str) -> dict[int, int]:
    """The attention windows of the blocks that have one: by default those without a rope."""
    kinds = parse_layer_types(raw.layer_types, _KINDS, raw.num_hidden_layers, origin)
    if kinds is not None:
        blocks = [block for block, kind in enumerate(kinds) if kind == "sliding_attention"]
    else:
        blocks = sorted(unturned) if raw.use_sliding_window and raw.sliding_window else []
    if blocks and raw.sliding_window is None:
        raise CheckpointError(
            f"{origin}: sliding_window is null, and blocks {blocks} slide by layer_types; give "
            "their window"
        )
    return dict.fromkeys(blocks, raw.sliding_window or 0)
