"""What a text costs an engine, from the shape: operations and bytes of weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siren_export.families.registry import parse_config
from siren_export.heads.base import Artifact
from siren_export.heads.together import head_set

from .engine import Work

# int4 has a float16 or float32 scale for each block of 32 weights; counted as half a bit each.
_WEIGHT_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5625}


@dataclass(frozen=True)
class ModelSize:
    """The matrix products of a guard: parameters, and what attention adds.

    Attributes:
        block_parameters: Of the matrices of the blocks that the heads need.
        all_block_parameters: Of the matrices of every block.
        head_parameters: Of the SIREN heads, always in float32.
        vocabulary_parameters: Of the language-model head.
        attention_width: Query channels of a block.
        blocks: As many as the heads need.
        all_blocks: Of the whole model.
        causal: Half of the attention is masked and need not be computed.
    """

    block_parameters: int
    all_block_parameters: int
    head_parameters: int
    vocabulary_parameters: int
    attention_width: int
    blocks: int
    all_blocks: int
    causal: bool


@dataclass(frozen=True)
class Pass:
    """One pass over the weights.

    Attributes:
        operations: Multiplications and additions of matrix products.
        weight_bytes: Bytes of weights that are read once.
    """

    operations: float
    weight_bytes: float


def model_size(artifact: Artifact, config: Mapping[str, Any]) -> ModelSize:
    """Count the parameters of an artifact's backbone, as config.json says, and of its heads."""
    backbone, heads = parse_config(config, "config.json"), head_set(artifact)
    kept = heads.taps.deepest + 1
    return ModelSize(
        block_parameters=kept * backbone.block_parameters,
        all_block_parameters=backbone.blocks * backbone.block_parameters,
        head_parameters=sum(head.parameters for head in heads.heads.values()),
        vocabulary_parameters=backbone.hidden_size * backbone.vocab_size,
        attention_width=backbone.attention_heads * backbone.head_dim,
        blocks=kept,
        all_blocks=backbone.blocks,
        causal=backbone.causal,
    )


def passes(work: Work, size: ModelSize, tokens: int) -> list[Pass]:
    """List the passes over the weights that `work` needs for a text of `tokens` tokens."""
    weight = _WEIGHT_BYTES[work.dtype]
    if not work.new_tokens:
        operations = 2 * tokens * size.block_parameters + _attention(size, size.blocks, 0, tokens)
        bytes_read = weight * size.block_parameters + 4 * size.head_parameters
        return [Pass(operations + 2 * size.head_parameters, bytes_read)]
    bytes_read = weight * (size.all_block_parameters + size.vocabulary_parameters)
    past, steps = 0, [work.template_tokens + tokens] + [1] * (work.new_tokens - 1)
    generation = []
    for new in steps:
        operations = 2 * new * size.all_block_parameters + 2 * size.vocabulary_parameters
        attention = _attention(size, size.all_blocks, past, new)
        generation.append(Pass(operations + attention, bytes_read))
        past += new
    return generation


def _attention(size: ModelSize, blocks: int, past: int, new: int) -> float:
    """Operations of QK^T and of the weighted sum of V; only the unmasked half where causal."""
    pairs = past * new + (new * (new + 1) / 2 if size.causal else new * new)
    return 4 * blocks * size.attention_width * pairs
