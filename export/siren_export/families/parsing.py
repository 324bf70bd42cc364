"""What reading a config.json takes in every family.

Both the transformers 4 form (`rope_theta`, `rope_scaling`) and the 5 form (`rope_parameters`)
are read; where both are there, they must say the same, since releases of transformers differ in
which one they take. Defaults for absent keys are those of its configuration classes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, cast

import msgspec

from siren_export.graph.rotary import Rope, RopeKind
from siren_export.sources.sizes import LARGEST_SIZE
from siren_runtime.errors import CheckpointError

T = TypeVar("T")

Size = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIZE)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Turns = Annotated[float, msgspec.Meta(ge=1e-3, le=1e6)]


class Config(msgspec.Struct, kw_only=True):
    """The keys that all families read. A family gives again those that it has defaults for."""

    model_type: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    hidden_act: str


class DecoderConfig(Config, kw_only=True):
    """And those that all decoders read."""

    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    max_position_embeddings: Size
    rope_theta: PositiveFloat | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False


class _Rope(msgspec.Struct, forbid_unknown_fields=True):
    rope_theta: PositiveFloat
    rope_type: str
    factor: PositiveFloat = 1.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: Size | msgspec.UnsetType = msgspec.UNSET
    attention_factor: PositiveFloat | None = None
    beta_fast: Turns = 32.0
    beta_slow: Turns = 1.0
    mscale: NotNegative | None = None
    mscale_all_dim: NotNegative | None = None
    truncate: bool = True
    partial_rotary_factor: float | None = None


_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}


def convert(value: Mapping[str, Any], kind: type[T], origin: str) -> T:
    """Read an object as `kind`, strictly but for keys that it does not have.

    Raises:
        CheckpointError: a key is missing, or of a wrong type or range.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        key = str(error).rpartition("`$.")[2].rstrip("`")
        found = f"; found {json.dumps(value[key])[:200]}" if key in value else ""
        raise CheckpointError(f"{origin}: {error}{found}") from None


def encoder_fields(raw: Config, origin: str) -> dict[str, Any]:
    """The fields of an `Encoder`.

    Raises:
        CheckpointError: its channels do not divide among its heads.
    """
    if raw.hidden_size % raw.num_attention_heads:
        raise CheckpointError(
            f"{origin}: hidden_size {raw.hidden_size} is not a multiple of "
            f"num_attention_heads {raw.num_attention_heads}"
        )
    return _fields(raw)


def decoder_fields(
    raw: DecoderConfig, origin: str, *, default_head_dim: int | None = None
) -> dict[str, Any]:
    """The fields of a `Decoder` but for its rope, its windows and its prefixes.

    Args:
        default_head_dim: where none is given; by default what the heads have of `hidden_size`.

    Raises:
        CheckpointError: as `check_heads`.
    """
    heads = raw.num_attention_heads
    kv_heads = raw.num_key_value_heads or heads
    head_dim = raw.head_dim or default_head_dim or raw.hidden_size // heads
    check_heads(heads, kv_heads, head_dim, origin)
    return _fields(raw) | {
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": raw.rms_norm_eps,
        "max_position_embeddings": raw.max_position_embeddings,
        "tied_embeddings": raw.tie_word_embeddings,
    }


def _fields(raw: Config) -> dict[str, Any]:
    return {
        "model_type": raw.model_type,
        "vocab_size": raw.vocab_size,
        "hidden_size": raw.hidden_size,
        "intermediate_size": raw.intermediate_size,
        "blocks": raw.num_hidden_layers,
        "attention_heads": raw.num_attention_heads,
        "hidden_act": raw.hidden_act,
    }


def parse_rope(
    raw: DecoderConfig,
    origin: str,
    *,
    original_max_position_embeddings: int | None = None,
    default_theta: float = 10000.0,
) -> Rope:
    """Read the rotary embedding of a config that has one.

    Args:
        origin: for errors.
        original_max_position_embeddings: the key of this name beside the rope, which counts where
            the rope has none.
        default_theta: where none is given.

    Raises:
        CheckpointError: a kind that the graphs do not have, a key that is not known, a factor of
            a wrong type or range, or two keys that contradict each other.
    """
    return _parse_rope(
        raw.rope_scaling,
        raw.rope_parameters,
        rope_theta=raw.rope_theta,
        original_max_position_embeddings=original_max_position_embeddings,
        max_position_embeddings=raw.max_position_embeddings,
        origin=origin,
        default_theta=default_theta,
    )


def _parse_rope(
    scaling: Mapping[str, Any] | None,
    parameters: Mapping[str, Any] | None,
    *,
    rope_theta: float | None,
    original_max_position_embeddings: int | None,
    max_position_embeddings: int,
    origin: str,
    default_theta: float,
) -> Rope:
    """As `parse_rope`; `max_position_embeddings` counts where there is no original one."""
    given = {
        name: _read_rope(keys, name, rope_theta, default_theta, origin)
        for name, keys in (("rope_scaling", scaling), ("rope_parameters", parameters))
        if keys
    }
    ropes = list(given.values()) or [_read_rope({}, "rope", rope_theta, default_theta, origin)]
    rope = ropes[0]
    if rope != ropes[-1]:
        raise CheckpointError(
            f"{origin}: rope_scaling and rope_parameters contradict each other, and releases of "
            "transformers differ in which one they take; remove the wrong one"
        )
    original = rope.original_max_position_embeddings
    if original is msgspec.UNSET:
        original = original_max_position_embeddings or max_position_embeddings
    elif rope.rope_type in ("llama3", "yarn") and original_max_position_embeddings not in (
        None,
        original,
    ):
        raise CheckpointError(
            f"{origin}: original_max_position_embeddings is {original_max_position_embeddings} "
            f"and {original} in {next(iter(given))}, and releases of transformers differ in which "
            "one they take; remove the wrong one"
        )
    return Rope(
        theta=rope.rope_theta,
        kind=cast("RopeKind", rope.rope_type),
        factor=rope.factor,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        original_max_position_embeddings=original,
        beta_fast=rope.beta_fast,
        beta_slow=rope.beta_slow,
        truncate=rope.truncate,
        scale=_yarn_scale(rope) if rope.rope_type == "yarn" else 1.0,
    )


def _yarn_scale(rope: _Rope) -> float:
    """Of cosines and sines, so that attention is as sharp as over the original context."""

    def scale(factor: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * factor * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


def parse_ropes(
    parameters: Mapping[str, Any] | None,
    scaling: Mapping[str, Mapping[str, Any] | None],
    thetas: Mapping[str, float | None],
    default_thetas: Mapping[str, float],
    *,
    max_position_embeddings: int,
    origin: str,
) -> list[Rope]:
    """Read the rotary embeddings of a config with one for each kind of block.

    Args:
        parameters: its `rope_parameters`, which hold those of each kind.
        scaling, thetas, default_thetas: `rope_scaling`, `rope_theta` and its default, by kind; the
            ropes have their order.

    Raises:
        CheckpointError: as `parse_rope`, a kind that there is not, or a key that is not read here.
    """
    given = parameters or {}
    for keys in scaling.values():
        if keys and "type" in keys and "rope_type" not in keys:
            raise CheckpointError(
                f"{origin}: rope_scaling has a type and no rope_type, and of this model "
                "transformers reads rope_type alone; name it so, or remove it"
            )
    for kind in sorted(set(given) - set(default_thetas)):
        raise CheckpointError(
            f"{origin}: rope_parameters has {kind!r}; expected "
            f"{' and '.join(default_thetas)}, one rope for each kind of block"
        )
    ropes = [
        _parse_rope(
            scaling[kind],
            convert({"rope": given.get(kind)}, _OneRope, f"{origin}: rope_parameters.{kind}").rope,
            rope_theta=thetas[kind],
            original_max_position_embeddings=None,
            max_position_embeddings=max_position_embeddings,
            origin=origin,
            default_theta=default_theta,
        )
        for kind, default_theta in default_thetas.items()
    ]
    if not all(rope.truncate for rope in ropes):
        raise CheckpointError(
            f"{origin}: truncate is false in the rope of a kind of block, where transformers does "
            "not look for it; remove it"
        )
    return ropes


class _OneRope(msgspec.Struct):
    rope: dict[str, Any] | None


def _read_rope(
    given: Mapping[str, Any],
    name: str,
    rope_theta: float | None,
    default_theta: float,
    origin: str,
) -> _Rope:
    keys = dict(given)
    kind = keys.pop("type", "default")
    kind = keys.setdefault("rope_type", kind)
    if given.get("type", kind) != kind:
        raise CheckpointError(
            f"{origin}: {name}: rope_type is {kind!r} and type {given['type']!r}; remove the "
            "wrong one"
        )
    theta = keys.setdefault("rope_theta", default_theta if rope_theta is None else rope_theta)
    if rope_theta not in (None, theta):
        raise CheckpointError(
            f"{origin}: rope_theta is {rope_theta} and {theta} in {name}, and releases of "
            "transformers differ in which one they take; remove the wrong one"
        )
    if kind not in _REQUIRED:
        raise CheckpointError(
            f"{origin}: rope type {kind!r} is not supported; supported: {', '.join(_REQUIRED)}"
        )
    for key in _REQUIRED[kind]:
        if key not in keys:
            raise CheckpointError(f"{origin}: {name}: {key} is missing, which {kind!r} needs")
    rope = convert(keys, _Rope, f"{origin}: rope parameters ({name})")
    if rope.partial_rotary_factor not in (None, 1.0):
        raise CheckpointError(
            f"{origin}: partial_rotary_factor {rope.partial_rotary_factor} is not supported; "
            "the whole head must rotate (1.0)"
        )
    if kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise CheckpointError(
            f"{origin}: {name}: high_freq_factor {rope.high_freq_factor} is not above "
            f"low_freq_factor {rope.low_freq_factor}"
        )
    if kind == "yarn" and (rope.rope_theta <= 1 or rope.beta_fast < rope.beta_slow):
        raise CheckpointError(
            f"{origin}: {name}: rope_theta is {rope.rope_theta}, beta_fast {rope.beta_fast} and "
            f"beta_slow {rope.beta_slow}; 'yarn' needs a rope_theta above 1, and a beta_fast that "
            "is no less than beta_slow"
        )
    return rope


def parse_layer_types(
    layer_types: Sequence[str] | None, allowed: Sequence[str], blocks: int, origin: str
) -> Sequence[str] | None:
    """Check `layer_types`: one of the kinds for each block.

    Raises:
        CheckpointError: one is of another kind, or there are more or fewer than blocks.
    """
    for kind in sorted(set(layer_types or ()) - set(allowed)):
        raise CheckpointError(
            f"{origin}: layer_types holds {kind!r}; this model may have {' and '.join(allowed)}"
        )
    if layer_types is not None and len(layer_types) != blocks:
        raise CheckpointError(
            f"{origin}: layer_types has {len(layer_types)} entries; num_hidden_layers is {blocks}"
        )
    return layer_types


def check_heads(heads: int, kv_heads: int, head_dim: int, origin: str) -> None:
    """Refuse heads that cannot share keys, or cannot be turned.

    Raises:
        CheckpointError: they do not divide, or a head has an odd number of channels.
    """
    if heads % kv_heads:
        raise CheckpointError(
            f"{origin}: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    if head_dim % 2:
        raise CheckpointError(f"{origin}: head_dim {head_dim} is odd; rotary embedding needs pairs")
