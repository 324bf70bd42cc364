"""The types that the fields of a bundle's files are made of."""

from typing import Annotated, Literal

import msgspec

Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4"]
Target = Literal["onnxruntime", "tensorrt", "tensorrt-rtx", "tensorrt10"]

Positive = Annotated[int, msgspec.Meta(ge=1)]
Size = Annotated[int, msgspec.Meta(ge=0)]
Probability = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of guard.json. What it does not know it refuses: it could decide a score."""
