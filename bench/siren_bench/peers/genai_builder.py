"""Run onnxruntime-genai's model builder on checkpoints that transformers 5 describes.

`python -m siren_bench.peers.genai_builder BACKBONE OUTPUT PRECISION CACHE` builds for the CPU, in a
process of its own, since the builder prints much and keeps its memory.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from siren_runtime.generation.engine import import_genai


def build_model(
    backbone: Path, output: Path, precision: str, cache: Path, device: str = "cpu"
) -> None:
    """Write the model folder of a backbone.

    Args:
        precision: "fp32", "fp16" or "int4".
        device: "cpu" or "cuda"; nothing is run on it.
    """
    builder = import_module(".models.builder", import_genai().__name__)
    arguments = ("", str(backbone), str(output), precision, device, str(cache))
    options = builder.parse_extra_options(*arguments, [])
    _as_the_builder_knows_it(options["hf_details"]["hf_config"])
    builder.create_model(*arguments, **options)


def _as_the_builder_knows_it(config: Any) -> None:
    """Builder 0.18 reads rotary settings as transformers 4 wrote them."""
    if config.model_type == "gemma3_text":
        rope = config.rope_parameters
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = rope["full_attention"]
    if config.model_type == "phi3":
        config.original_max_position_embeddings = config.max_position_embeddings


if __name__ == "__main__":
    build_model(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
