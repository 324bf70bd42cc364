"""The true shapes of the backbones that SIREN heads are released for, and of their heads.

A backbone's shape is its published config.json. A released head's shape is only known by its
number of parameters, so the feature counts and hidden widths here are plausible ones that give
that number. Every layer is selected, as in the released heads.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A backbone's published config.json and the shape of the head on top of it.

    Attributes:
        name: What the command line calls it.
        config: config.json as published, in the form of transformers 4.
        channels_per_layer: Channels that the head reads of each layer.
        hidden_dims: Widths of the head's hidden layers.
    """

    name: str
    config: dict[str, Any]
    channels_per_layer: int
    hidden_dims: tuple[int, ...]

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def features(self) -> int:
        return self.layers * self.channels_per_layer

    @property
    def head_parameters(self) -> int:
        """Weights and biases of the head, two classes."""
        widths = (self.features, *self.hidden_dims, 2)
        return sum(i * o + o for i, o in pairwise(widths))


def _qwen3(hidden_size: int, intermediate_size: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }


def _llama3(
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    head_dim: int,
    rope_factor: float,
    tied: bool,
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": rope_factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 128256,
    }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen3-0.6b", _qwen3(1024, 3072, 28, 16), 250, (1536, 1024)),
        # No head is released for 1.7B; it gets the widths of the 0.6B's.
        Shape("qwen3-1.7b", _qwen3(2048, 6144, 28, 16), 250, (1536, 1024)),
        Shape("qwen3-4b", _qwen3(2560, 9728, 36, 32), 365, (1024, 512)),
        Shape("llama-3.2-1b", _llama3(2048, 8192, 16, 64, 32.0, True), 640, (512, 256)),
        Shape("llama-3.1-8b", _llama3(4096, 14336, 32, 128, 8.0, False), 822, (2048, 1024)),
    )
}
