"""Further heads, and heads of categories, by llm-siren's features and its MLP.

llm-siren gives the score of one head of two classes. What it computes before that is the same for
every MLP head, so another head's is its own on the backbone that llm-siren has opened.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siren_export.heads.base import CONFIG_FILE, WEIGHTS_FILE, Artifact
from siren_export.heads.polynomial import PolynomialHead
from siren_runtime.bundle.heads import HARMFUL


def as_llm_siren(artifact: Artifact) -> tuple[dict[str, Any], dict[str, NDArray[Any]] | None]:
    """The config of a head as llm-siren takes it; where it has no such head, a content artifact's,
    whose features are the same.

    Returns:
        The config, and the tensors of an MLP that stands in; None where the head's own are taken.
    """
    config = json.loads((artifact.path / CONFIG_FILE).read_bytes())
    if artifact.task == "content":
        config["task"] = "content"
    if isinstance(artifact.head, PolynomialHead):
        features = artifact.head.weight.size
        config["mlp"] = {"input_dim": features, "layer_dims": [], "dropout_rates": []}
        zeros = np.zeros((2, features), np.float32)
        return config, {"network.0.weight": zeros, "network.0.bias": zeros[:, 0].copy()}
    return config, None


def llm_siren_guard(
    artifact: Artifact, backbone: Any, tokenizer: Any, device: Any = None, dtype: Any = None
) -> Any:
    """llm-siren's guard of a head, over a backbone and tokenizer that are open.

    Args:
        device, dtype: of torch; the CPU and float32.
    """
    import torch
    from safetensors.torch import load_file
    from siren_guard import siren_guard

    config, tensors = as_llm_siren(artifact)
    shape = config["mlp"]
    mlp = siren_guard._AdaptiveMLPClassifier(
        input_dim=shape["input_dim"],
        layer_dims=shape["layer_dims"],
        dropout_rates=shape["dropout_rates"],
        num_classes=shape.get("num_classes", 2),
    )
    if tensors is None:
        mlp.load_state_dict(load_file(artifact.path / WEIGHTS_FILE))
    device, dtype = device or torch.device("cpu"), dtype or torch.float32
    return siren_guard.SirenGuard(config, mlp, backbone, tokenizer, device, dtype)


def of_head(guard: Any, artifact: Artifact) -> Any:
    """The guard of another head on the backbone of `guard`."""
    shared = guard._backbone, guard._tokenizer, guard._device, guard._dtype
    return llm_siren_guard(artifact, *shared)


def row(guard: Any, artifact: Artifact, text: str) -> list[float]:
    """The score of a head, and behind it the probabilities of its categories or orders."""
    import torch

    with torch.no_grad():
        features = guard._aggregate_features([text]).float()
        logits = guard._mlp(features)[0]
    if isinstance(artifact.head, PolynomialHead):
        orders = torch.sigmoid(_polynomial(artifact.head, features[0])).tolist()
        return [orders[-1], *orders]
    spec = artifact.head.spec
    if spec.has_labels:
        temperatures = [label.temperature for label in artifact.decision.labels] or [1.0]
        probabilities = torch.sigmoid(logits / torch.tensor(temperatures)).tolist()
        return [max(probabilities), *probabilities]
    if spec.activation == "logistic":
        return [torch.sigmoid(logits).item()]
    probabilities = torch.softmax(logits, dim=-1).tolist()
    return [probabilities[HARMFUL], *(probabilities if spec.categories else [])]


def _polynomial(head: PolynomialHead, features: Any) -> Any:
    """The logit of each order, by its definition."""
    import torch

    x = (features - torch.from_numpy(head.mean)) / torch.from_numpy(head.scale)
    logits = [x @ torch.from_numpy(head.weight) + head.bias]
    for order, term in enumerate(head.terms, start=2):
        powers = (torch.from_numpy(term.directions) @ x) ** order
        logits.append(logits[-1] + powers @ torch.from_numpy(term.factors))
    return torch.stack(logits)
