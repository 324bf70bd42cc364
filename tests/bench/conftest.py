"""A shape small enough to synthesize in every test, known to the commands by name."""

import pytest

from siren_bench.subjects.shapes import SHAPES, Shape

_TINY = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
}


def _shrink(name: str) -> Shape:
    config = {**SHAPES[name].config, **_TINY}
    return Shape(f"tiny-{name}", config, channels_per_layer=10, hidden_dims=(16, 8))


TINY_SHAPES = [_shrink("qwen3-0.6b"), _shrink("llama-3.2-1b"), _shrink("llama-3.1-8b")]


@pytest.fixture(params=TINY_SHAPES, ids=lambda shape: shape.name)
def tiny_shape(request: pytest.FixtureRequest) -> Shape:
    """Each tiny stand-in for a true shape in turn."""
    return request.param


@pytest.fixture
def tiny_name(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a tiny shape that the commands know."""
    shape = TINY_SHAPES[0]
    monkeypatch.setitem(SHAPES, shape.name, shape)
    return shape.name
