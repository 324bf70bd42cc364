"""A backbone's config.json, read into what the graph authors need.

Both the transformers 4 form (`rope_theta`, `rope_scaling`) and the 5 form (`rope_parameters`)
are read. Defaults for absent keys are those of the transformers configuration classes.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from siren_runtime.errors import CheckpointError

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
ENCODERS = ("bert",)
SUPPORTED = (*DECODERS, *ENCODERS)


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding. `kind` is "default", "linear" or "llama3"."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class DecoderConfig:
    """Llama, Mistral, Qwen2 or Qwen3. Biases are flags; sizes are channels."""

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
    sliding_window: int | None
    max_position_embeddings: int

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens, over which full attention is what the model does."""
        return min(self.max_position_embeddings, self.sliding_window or sys.maxsize)


@dataclass(frozen=True)
class EncoderConfig:
    """BERT with absolute positions."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    blocks: int
    attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    max_position_embeddings: int
    type_vocab_size: int


BackboneConfig = DecoderConfig | EncoderConfig

_T = TypeVar("_T")

_Size = Annotated[int, msgspec.Meta(ge=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]


class _HfDecoder(msgspec.Struct):
    model_type: str
    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size | msgspec.UnsetType | None = msgspec.UNSET
    head_dim: _Size | None = None
    hidden_act: str = "silu"
    rms_norm_eps: _Positive = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: _Size | msgspec.UnsetType | None = msgspec.UNSET
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    max_position_embeddings: _Size = 2048
    rope_theta: _Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None


class _HfEncoder(msgspec.Struct):
    model_type: str
    vocab_size: _Size = 30522
    hidden_size: _Size = 768
    intermediate_size: _Size = 3072
    num_hidden_layers: _Size = 12
    num_attention_heads: _Size = 12
    hidden_act: str = "gelu"
    layer_norm_eps: _Positive = 1e-12
    max_position_embeddings: _Size = 512
    type_vocab_size: _Size = 2
    position_embedding_type: str | None = "absolute"
    is_decoder: bool = False


class _HfRope(msgspec.Struct):
    rope_theta: _Positive = 10000.0
    rope_type: str = "default"
    factor: _Positive = 1.0
    low_freq_factor: _Positive = 1.0
    high_freq_factor: _Positive = 4.0
    original_max_position_embeddings: _Size | None = None
    partial_rotary_factor: float = 1.0


def parse_config(config: Mapping[str, Any], origin: str) -> BackboneConfig:
    """Read a config.json object; `origin` names it in errors.

    Raises:
        CheckpointError: an unsupported `model_type`, a key of a wrong type or range, or a
            setting that the authored graphs do not have.
    """
    model_type = config.get("model_type")
    if model_type in DECODERS:
        return _decoder(_convert(config, _HfDecoder, origin), origin)
    if model_type in ENCODERS:
        return _encoder(_convert(config, _HfEncoder, origin), origin)
    raise CheckpointError(
        f"{origin}: model_type {model_type!r} is not supported; supported: {', '.join(SUPPORTED)}"
    )


def check_max_length(config: BackboneConfig, max_length: int, origin: str) -> None:
    """Refuse a token limit at which the graph would not be exact.

    Raises:
        CheckpointError: beyond an encoder's positions or a decoder's sliding window.
    """
    if isinstance(config, EncoderConfig):
        if max_length > config.max_position_embeddings:
            raise CheckpointError(
                f"{origin}: the head's max_length {max_length} exceeds max_position_embeddings "
                f"{config.max_position_embeddings}; lower inference.max_length in the artifact"
            )
    elif config.sliding_window is not None and config.sliding_window < max_length:
        raise CheckpointError(
            f"{origin}: attention slides over {config.sliding_window} tokens and the head reads "
            f"up to {max_length}; only a window of at least max_length is exact. Lower "
            f"inference.max_length in the artifact to {config.sliding_window} or less"
        )


def _decoder(raw: _HfDecoder, origin: str) -> DecoderConfig:
    kv_heads = raw.num_key_value_heads
    if kv_heads is msgspec.UNSET:
        kv_heads = {"llama": None, "mistral": 8}.get(raw.model_type, 32)
    kv_heads = kv_heads or raw.num_attention_heads
    if raw.num_attention_heads % kv_heads:
        raise CheckpointError(
            f"{origin}: num_attention_heads {raw.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    default_dim = 128 if raw.model_type == "qwen3" else raw.hidden_size // raw.num_attention_heads
    head_dim = raw.head_dim or default_dim
    if head_dim % 2:
        raise CheckpointError(f"{origin}: head_dim {head_dim} is odd; rotary embedding needs pairs")
    # Mistral has no attention biases and Qwen2 always q/k/v ones, whatever config.json says.
    flag = raw.attention_bias and raw.model_type in ("llama", "qwen3")
    return DecoderConfig(
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
        rope=_rope(raw, origin),
        qkv_bias=flag or raw.model_type == "qwen2",
        output_bias=flag,
        mlp_bias=raw.mlp_bias and raw.model_type == "llama",
        qk_norm=raw.model_type == "qwen3",
        sliding_window=_sliding_window(raw),
        max_position_embeddings=raw.max_position_embeddings,
    )


def _sliding_window(raw: _HfDecoder) -> int | None:
    """The smallest attention window of any block; None where every block sees everything."""
    window = 4096 if raw.sliding_window is msgspec.UNSET else raw.sliding_window
    if raw.model_type == "mistral":
        return window
    if raw.model_type == "llama" or not raw.use_sliding_window:
        return None
    if raw.layer_types is not None:
        slides = "sliding_attention" in raw.layer_types
    else:
        slides = raw.max_window_layers < raw.num_hidden_layers
    return window if slides else None


def _rope(raw: _HfDecoder, origin: str) -> Rope:
    given = dict(raw.rope_parameters or raw.rope_scaling or {})
    given.setdefault("rope_type", given.pop("type", "default"))
    if raw.rope_theta is not None:
        given.setdefault("rope_theta", raw.rope_theta)
    rope = _convert(given, _HfRope, f"{origin}: rope parameters")
    if rope.rope_type not in ("default", "linear", "llama3"):
        raise CheckpointError(
            f"{origin}: rope type {rope.rope_type!r} is not supported; "
            "supported: default, linear, llama3"
        )
    if rope.partial_rotary_factor != 1.0:
        raise CheckpointError(
            f"{origin}: partial_rotary_factor {rope.partial_rotary_factor} is not supported; "
            "the whole head must rotate (1.0)"
        )
    return Rope(
        theta=rope.rope_theta,
        kind=rope.rope_type,
        factor=rope.factor,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        original_max_position_embeddings=(
            rope.original_max_position_embeddings or raw.max_position_embeddings
        ),
    )


def _encoder(raw: _HfEncoder, origin: str) -> EncoderConfig:
    if raw.position_embedding_type not in (None, "absolute"):
        raise CheckpointError(
            f"{origin}: position_embedding_type {raw.position_embedding_type!r} is not supported; "
            "supported: absolute"
        )
    if raw.is_decoder:
        raise CheckpointError(f"{origin}: is_decoder is true; only BERT as an encoder is supported")
    if raw.hidden_size % raw.num_attention_heads:
        raise CheckpointError(
            f"{origin}: hidden_size {raw.hidden_size} is not a multiple of "
            f"num_attention_heads {raw.num_attention_heads}"
        )
    return EncoderConfig(
        model_type=raw.model_type,
        vocab_size=raw.vocab_size,
        hidden_size=raw.hidden_size,
        intermediate_size=raw.intermediate_size,
        blocks=raw.num_hidden_layers,
        attention_heads=raw.num_attention_heads,
        hidden_act=raw.hidden_act,
        layer_norm_eps=raw.layer_norm_eps,
        max_position_embeddings=raw.max_position_embeddings,
        type_vocab_size=raw.type_vocab_size,
    )


def _convert(value: Mapping[str, Any], kind: type[_T], origin: str) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{origin}: {error}") from None
