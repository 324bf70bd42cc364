"""The rotary embedding of a header, in the form of config.json."""

import math
from typing import Any

import numpy as np
from gguf import dequantize

from siren_runtime.errors import CheckpointError

from .gguf_file import GgufFile
from .gguf_header import Header
from .gguf_names import ROPE_FACTORS

# Llama 3.1 to 3.3 have these; their header has none of the numbers, but what they make of each
# frequency, in a tensor.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_CLOSE = 1e-5  # relative; the tensor is float32


def read_rope(file: GgufFile, header: Header, prefix: str, head_dim: int) -> dict[str, Any]:
    """Return `rope_parameters`: its type, theta, and what the type needs.

    Args:
        prefix: of the architecture's keys.
        head_dim: the channels of a head, all of which must rotate.

    Raises:
        CheckpointError: only a part of a head rotates, or positions are scaled in a way that the
            graphs do not have.
    """
    rotated = header.integer(f"{prefix}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise header.refusal(
            f"{prefix}.rope.dimension_count", f"the whole head of {head_dim} must rotate"
        )
    theta = header.number(f"{prefix}.rope.freq_base", 10000.0)
    scaling = f"{prefix}.rope.scaling"
    header.only(f"{scaling}.type", "none", "linear", "yarn")
    header.only(f"{scaling}.attn_factor", 1.0)
    header.note(f"{scaling}.finetuned", f"{scaling}.original_context_length")
    kind = header.text(f"{scaling}.type", "linear")
    # A factor without a type is that of the linear one; `scale_linear` is its older name.
    factor = header.number(f"{prefix}.rope.scale_linear", 1.0)
    factor = header.number(f"{scaling}.factor", factor)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if kind == "linear" and factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": factor, **_yarn(header, prefix)}
    if ROPE_FACTORS in file.tensors:
        if rope["rope_type"] != "default":
            raise CheckpointError(
                f"{file.path}: the header scales positions, and so does {ROPE_FACTORS}; only one "
                "of the two is supported"
            )
        rope |= {"rope_type": "llama3", **_llama3(file, theta, head_dim)}
    return rope


def _yarn(header: Header, prefix: str) -> dict[str, Any]:
    """What YaRN needs beside a factor. llama.cpp sharpens attention by the factor alone."""
    scaling = f"{prefix}.rope.scaling"
    for key in ("yarn_ext_factor", "yarn_attn_factor"):
        header.only(f"{scaling}.{key}", 1.0)
    context = header.integer(f"{prefix}.context_length")
    return {
        "original_max_position_embeddings": header.integer(
            f"{scaling}.original_context_length", context
        ),
        "beta_fast": header.number(f"{scaling}.yarn_beta_fast", 32.0),
        "beta_slow": header.number(f"{scaling}.yarn_beta_slow", 1.0),
    }


def _llama3(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """What makes the factors that the file has for each frequency (Llama 3.1's scaling)."""
    tensor = file.tensors[ROPE_FACTORS]
    expected = f"{file.path}: tensor {ROPE_FACTORS!r}: expected the {head_dim // 2} factors of "
    if tensor.shape != (head_dim // 2,) or tensor.type.name != "F32":
        raise CheckpointError(
            f"{expected}the frequencies in F32, found {list(tensor.shape)} in {tensor.type.name}"
        )
    found = dequantize(file.read(ROPE_FACTORS), tensor.type).reshape(-1)
    factor = float(found.max())
    if math.isfinite(factor) and factor >= 1.0:
        scaling = {"factor": factor, **_LLAMA3}
        if np.allclose(found, _factors(theta, head_dim, scaling), rtol=_CLOSE, atol=0.0):
            return scaling
    raise CheckpointError(
        f"{expected}Llama 3's scaling of positions with {_LLAMA3}, found others; they are not "
        "supported"
    )


def _factors(theta: float, head_dim: int, scaling: dict[str, Any]) -> np.ndarray:
    """What each frequency is divided by: 1 where it is high, `factor` where it is low."""
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: np.ndarray = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return factors
