"""Why a mixture of experts is refused, and how it is known.

A config.json tells by its counts of experts, or else by its model_type; a GGUF header by its count,
without which llama.cpp loads no such model.
"""

import re
from collections.abc import Mapping
from typing import Any

_GRAPH = (
    "export its graph with Optimum or onnxruntime-genai's builder and give that folder as "
    "--backbone"
)
MIXTURE = (
    "is a mixture of experts, which is not supported: it would need the router authored, a product "
    "of each token with the matrices of its own experts, and passes that quantize those; use a "
    f"dense model, or {_GRAPH}"
)
_MAYBE = (
    "is not supported: its blocks may have experts or Mamba layers, though this config counts no "
    f"experts, and none of its kind is authored here; use another model, or {_GRAPH}"
)
# Models that have experts, or may have, by their names; others are known by their counts of them.
_NAMES = re.compile(
    r"moe|mixtral|dbrx|arctic|deepseek_v\d|dots1|gpt_oss|jamba|llama4|longcat|minimax|qwen3_next"
)
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def why_experts_are_refused(*configs: Mapping[str, Any]) -> str | None:
    """What to say of a model that has experts, or may have; None of another.

    Args:
        configs: its config.json, and that of its text part where it has one.
    """
    counts = [config[key] for config in configs for key in _COUNTS if config.get(key) is not None]
    named = any(_NAMES.search(str(config.get("model_type"))) for config in configs)
    if any(counts) or (named and not counts):
        return MIXTURE
    return _MAYBE if named else None
