"""Phi-3 and Phi-4 (arXiv 2404.14219): Llama, with fused matrices and ropes that may be partial.

qkv_proj holds the matrices of queries, keys and values, gate_up_proj those of gate and up. Only the
first channels of a head turn where partial_rotary_factor is below 1. "longrope" divides each
frequency by a factor of its own: by the short ones up to the context that the model was trained
with, beyond it by the long ones, at all positions. So the graph is exact up to that context only.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from siren_export.graph.rotary import Rope
from siren_runtime.errors import CheckpointError

from .keys import check_keys
from .llama import Llama
from .parsing import DecoderConfig, PositiveFloat, Size, convert, decoder_fields

MODEL_TYPES = ("phi3",)


class _Config(DecoderConfig, kw_only=True):
    vocab_size: Size = 32064
    hidden_size: Size = 3072
    intermediate_size: Size = 8192
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    rms_norm_eps: PositiveFloat = 1e-5
    sliding_window: Size | None = None
    max_position_embeddings: Size = 4096
    original_max_position_embeddings: Size = 4096
    partial_rotary_factor: PositiveFloat | None = None


class _Rope(msgspec.Struct, forbid_unknown_fields=True):
    rope_type: str = "default"
    rope_theta: PositiveFloat | None = None
    partial_rotary_factor: PositiveFloat | None = None
    factor: PositiveFloat | None = None
    attention_factor: PositiveFloat | None = None
    short_factor: list[PositiveFloat] | None = None
    long_factor: list[PositiveFloat] | None = None
    original_max_position_embeddings: Size | None = None


# Of the output's logits.
_HARMLESS = frozenset({"lm_head_bias"})
_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
    "mlp_bias": (False,),
}


def parse(config: Mapping[str, Any], origin: str) -> Llama:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    check_keys(config, _Config, origin, harmless=_HARMLESS, fixed=_FIXED)
    raw = convert(config, _Config, origin)
    fields = decoder_fields(raw, origin)
    head_dim: int = fields["head_dim"]
    given = _given_rope(raw, origin)
    rotary_dim = int(head_dim * (given.partial_rotary_factor or 1.0))
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise CheckpointError(
            f"{origin}: partial_rotary_factor {given.partial_rotary_factor} turns {rotary_dim} of "
            f"{head_dim} channels of a head; rotary embedding needs pairs of them"
        )
    rope = _rope(raw, given, rotary_dim, origin)
    return Llama(
        **fields,
        rope=rope,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(
            dict.fromkeys(range(raw.num_hidden_layers), raw.sliding_window)
            if raw.sliding_window is not None
            else {}
        ),
        fused=True,
        rotary_dim=None if rotary_dim == head_dim else rotary_dim,
        longest=rope.original_max_position_embeddings if rope.kind == "longrope" else None,
    )


def _given_rope(raw: _Config, origin: str) -> _Rope:
    """The rope as config.json has it: in one object, or beside it; where in both, alike."""
    ropes = []
    for name in ("rope_scaling", "rope_parameters"):
        keys = dict(getattr(raw, name) or {})
        if not keys:
            continue
        kinds = {_renamed(keys[key]) for key in ("type", "rope_type") if keys.get(key)}
        if len(kinds) > 1:
            raise CheckpointError(
                f"{origin}: {name}: type is {keys['type']!r} and rope_type {keys['rope_type']!r}; "
                "remove the wrong one"
            )
        keys.pop("type", None)
        keys["rope_type"] = kinds.pop() if kinds else "default"
        for key in ("rope_theta", "partial_rotary_factor"):
            beside = getattr(raw, key)
            if keys.setdefault(key, beside) != beside and beside is not None:
                raise CheckpointError(
                    f"{origin}: {key} is {beside} and {keys[key]} in {name}; remove the wrong one"
                )
        ropes.append(convert(keys, _Rope, f"{origin}: {name}"))
    if not ropes:
        return _Rope(rope_theta=raw.rope_theta, partial_rotary_factor=raw.partial_rotary_factor)
    if ropes[0] != ropes[-1]:
        raise CheckpointError(
            f"{origin}: rope_scaling and rope_parameters contradict each other, and releases of "
            "transformers differ in which one they take; remove the wrong one"
        )
    return ropes[0]


def _renamed(kind: Any) -> Any:
    return "longrope" if kind == "su" else kind  # its name in the first releases


def _rope(raw: _Config, given: _Rope, rotary_dim: int, origin: str) -> Rope:
    theta = given.rope_theta or 10000.0
    if given.rope_type == "default":
        return Rope(theta)
    if given.rope_type != "longrope":
        raise CheckpointError(
            f"{origin}: rope type {given.rope_type!r} is not supported; supported: default, "
            "longrope"
        )
    original = raw.original_max_position_embeddings
    if original < 2:
        raise CheckpointError(
            f"{origin}: original_max_position_embeddings of the longrope is {original}; expected 2 "
            "or more, since its scale goes by their logarithm"
        )
    if given.original_max_position_embeddings not in (None, original):
        raise CheckpointError(
            f"{origin}: original_max_position_embeddings is {original} beside the rope, by default "
            f"or as given, which transformers takes, and {given.original_max_position_embeddings} "
            "in it; remove the wrong one"
        )
    for name, factors in (("short_factor", given.short_factor), ("long_factor", given.long_factor)):
        if factors is None or len(factors) != rotary_dim // 2:
            found = "missing" if factors is None else f"of {len(factors)} numbers"
            raise CheckpointError(
                f"{origin}: {name} of the longrope is {found}; expected {rotary_dim // 2} numbers"
            )
    factor = given.factor or raw.max_position_embeddings / original
    scale = given.attention_factor
    if scale is None:
        scale = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Rope(
        theta,
        kind="longrope",
        original_max_position_embeddings=original,
        factors=tuple(given.short_factor or ()),
        scale=scale,
    )
