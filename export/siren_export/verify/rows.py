"""Further heads, and heads of categories, by llm-siren's features and its MLP.

llm-siren gives the score of one head of two classes. What it computes before that is the same for
every MLP head, so another head's is its own on the backbone that llm-siren has opened.
"""

import json
from pathlib import Path
from typing import Any

from siren_export.heads.base import CONFIG_FILE, WEIGHTS_FILE, Artifact
from siren_runtime.bundle.heads import HARMFUL


def llm_siren_guard(
    artifact: Path, backbone: Any, tokenizer: Any, device: Any = None, dtype: Any = None
) -> Any:
    """llm-siren's guard of an artifact's folder, over a backbone and tokenizer that are open.

    Args:
        device, dtype: of torch; the CPU and float32.
    """
    import torch
    from safetensors.torch import load_file
    from siren_guard import siren_guard

    config = json.loads((artifact / CONFIG_FILE).read_bytes())
    shape = config["mlp"]
    mlp = siren_guard._AdaptiveMLPClassifier(
        input_dim=shape["input_dim"],
        layer_dims=shape["layer_dims"],
        dropout_rates=shape["dropout_rates"],
        num_classes=shape.get("num_classes", 2),
    )
    mlp.load_state_dict(load_file(artifact / WEIGHTS_FILE))
    device, dtype = device or torch.device("cpu"), dtype or torch.float32
    return siren_guard.SirenGuard(config, mlp, backbone, tokenizer, device, dtype)


def of_head(guard: Any, artifact: Artifact) -> Any:
    """The guard of another head on the backbone of `guard`."""
    shared = guard._backbone, guard._tokenizer, guard._device, guard._dtype
    return llm_siren_guard(artifact.path, *shared)


def row(guard: Any, artifact: Artifact, text: str) -> list[float]:
    """The score of a head, and behind it the probabilities of its categories, if it has any."""
    import torch

    with torch.no_grad():
        logits = guard._mlp(guard._aggregate_features([text]).float())[0]
    spec = artifact.head.spec
    if spec.activation == "sigmoid":
        temperatures = [label.temperature for label in artifact.decision.labels] or [1.0]
        probabilities = torch.sigmoid(logits / torch.tensor(temperatures)).tolist()
        return [max(probabilities), *probabilities]
    probabilities = torch.softmax(logits, dim=-1).tolist()
    return [probabilities[HARMFUL], *(probabilities if spec.categories else [])]
