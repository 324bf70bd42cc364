"""What reading a config.json takes in every family.

Both the transformers 4 form (`rope_theta`, `rope_scaling`) and the 5 form (`rope_parameters`)
are read. Defaults for absent keys are those of the transformers configuration classes.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast, get_args

import msgspec

from siren_export.graph.rotary import Rope, RopeKind
from siren_runtime.errors import CheckpointError

T = TypeVar("T")

Size = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]

_ROPE_KINDS = get_args(RopeKind)


class _Rope(msgspec.Struct):
    rope_theta: PositiveFloat = 10000.0
    rope_type: str = "default"
    factor: PositiveFloat = 1.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: Size | None = None
    partial_rotary_factor: float = 1.0


def convert(value: Mapping[str, Any], kind: type[T], origin: str) -> T:
    """Read an object as `kind`, strictly but for keys that it does not have.

    Raises:
        CheckpointError: a key is missing, or of a wrong type or range.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{origin}: {error}") from None


def parse_rope(
    given: Mapping[str, Any] | None,
    rope_theta: float | None,
    max_position_embeddings: int,
    origin: str,
) -> Rope:
    """Read the rotary embedding of a config.

    Args:
        given: `rope_parameters` or `rope_scaling`.
        rope_theta: the key of that name beside them, which counts where `given` has none.

    Raises:
        CheckpointError: a kind that the graphs do not have, or a factor of a wrong type or range.
    """
    keys = dict(given or {})
    keys.setdefault("rope_type", keys.pop("type", "default"))
    if rope_theta is not None:
        keys.setdefault("rope_theta", rope_theta)
    rope = convert(keys, _Rope, f"{origin}: rope parameters")
    if rope.rope_type not in _ROPE_KINDS:
        raise CheckpointError(
            f"{origin}: rope type {rope.rope_type!r} is not supported; "
            f"supported: {', '.join(_ROPE_KINDS)}"
        )
    if rope.partial_rotary_factor != 1.0:
        raise CheckpointError(
            f"{origin}: partial_rotary_factor {rope.partial_rotary_factor} is not supported; "
            "the whole head must rotate (1.0)"
        )
    return Rope(
        theta=rope.rope_theta,
        kind=cast("RopeKind", rope.rope_type),
        factor=rope.factor,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        original_max_position_embeddings=(
            rope.original_max_position_embeddings or max_position_embeddings
        ),
    )
