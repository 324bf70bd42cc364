"""Tiny random generators: model folders that onnxruntime-genai's own builder makes."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from siren_train.store.generator import Generator, GeneratorPool

# Whose folders the builder makes and grafts are tested on, by their names in generation/conftest.
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "granite", "phi3", "phi")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def need_genai() -> Any:
    """The builder's module; the test is skipped where onnxruntime-genai is not installed."""
    pytest.importorskip(
        "onnxruntime_genai", reason="generators need onnxruntime-genai: siren-edge[generate]"
    )
    from onnxruntime_genai.models import builder

    return builder


def make_generator(backbone: Path, output: Path, precision: str, device: str) -> Path:
    """Build a tiny backbone's model folder.

    Args:
        precision: "fp32", "fp16" or "int4".
        device: "cpu" or "cuda"; nothing is run on it.
    """
    builder = need_genai()
    _add_chat_template(backbone)
    cache = str(output.parent / "cache")
    arguments = ("", str(backbone), str(output), precision, device, cache)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        options = builder.parse_extra_options(*arguments, [])
        _as_the_builder_knows_it(options["hf_details"]["hf_config"])
        builder.create_model(*arguments, **options)
    return output


def open_pool(generator: Generator, extractor: Path, max_length: int = 100) -> GeneratorPool:
    """Open what pools the means of a generator's residual states, which is written first."""
    generator.write_extractor(extractor, "residual_mean")
    return GeneratorPool(generator, extractor, max_length, 1)


def _add_chat_template(backbone: Path) -> None:
    path = backbone / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "chat_template": CHAT_TEMPLATE}), encoding="utf-8")


def _as_the_builder_knows_it(config: Any) -> None:
    """Builder 0.18 reads rotary settings as transformers 4 wrote them."""
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        theta = rope["full_attention"]["rope_theta"]
        config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    if config.model_type == "phi3":
        config.original_max_position_embeddings = config.max_position_embeddings
