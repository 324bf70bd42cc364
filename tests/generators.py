"""Tiny random generators: model folders that onnxruntime-genai's own builder makes."""

import contextlib
import io
import json
from pathlib import Path

import pytest

from siren_bench.peers.genai_builder import build_model
from siren_train.store.generator import Generator, GeneratorPool

# Whose folders the builder makes and grafts are tested on, by their names in generation/conftest.
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "granite", "phi3", "phi")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def need_genai() -> None:
    """Skip the test where onnxruntime-genai is not installed."""
    pytest.importorskip(
        "onnxruntime_genai", reason="generators need onnxruntime-genai: siren-edge[generate]"
    )


def make_generator(backbone: Path, output: Path, precision: str, device: str) -> Path:
    """Build a tiny backbone's model folder.

    Args:
        precision: "fp32", "fp16" or "int4".
        device: "cpu" or "cuda"; nothing is run on it.
    """
    need_genai()
    _add_chat_template(backbone)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        build_model(backbone, output, precision, output.parent / "cache", device)
    return output


def open_pool(generator: Generator, extractor: Path, max_length: int = 100) -> GeneratorPool:
    """Open what pools the means of a generator's residual states, which is written first."""
    generator.write_extractor(extractor, "residual_mean")
    return GeneratorPool(generator, extractor, max_length, 1)


def _add_chat_template(backbone: Path) -> None:
    path = backbone / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "chat_template": CHAT_TEMPLATE}), encoding="utf-8")
