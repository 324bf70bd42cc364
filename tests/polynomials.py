"""Random polynomial heads, and what they give by their definition, in float64."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from siren_export.heads.polynomial import PolynomialHead, Term
from siren_export.heads.polynomial_artifact import write_polynomial_artifact
from siren_export.heads.selected import LayerSelection
from siren_runtime.generation.manifest import TrainedOn


def make_polynomial(
    folder: Path,
    backbone: Path,
    *,
    layers: tuple[int, ...] = (0, 2),
    orders: int = 4,
    rank: int = 3,
    max_length: int = 48,
    seed: int = 0,
    trained_on: TrainedOn | None = None,
) -> Path:
    """Write a random head of `orders` orders, which all matter, and return its folder."""
    rng = np.random.default_rng(seed)
    size = json.loads((backbone / "config.json").read_text())["hidden_size"]
    selected = [LayerSelection(n, rng.permutation(size)[:9], 0.3 + 0.2 * n) for n in layers]
    width = 9 * len(selected)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    terms = tuple(
        Term(0.3 * normal(rank), normal(rank, width) / np.float32(width**0.5))
        for _ in range(orders - 1)
    )
    head = PolynomialHead(
        "residual_mean",
        tuple(selected),
        0.1 * normal(width),
        0.5 + np.abs(normal(width)),
        normal(width) / np.float32(width**0.5),
        0.1,
        terms,
    )
    write_polynomial_artifact(
        folder,
        head,
        model_id=str(backbone),
        model_revision=None,
        layers=selected,
        max_length=max_length,
        threshold=0.5,
        trained_on=trained_on,
    )
    return folder


def plain_orders(artifact: Path, features: np.ndarray) -> np.ndarray:
    """The logits [orders] of features [n_features], from the files of the artifact alone."""
    config = json.loads((artifact / "siren_config.json").read_text())["polynomial"]
    t = {n: v.astype(np.float64) for n, v in load_file(artifact / "siren.safetensors").items()}
    x = (features - t["mean"]) / t["scale"]
    logits = [t["weight"] @ x + t["bias"][0]]
    for k in range(2, config["orders"] + 1):
        term = t[f"order.{k}.factors"] @ (t[f"order.{k}.directions"] @ x) ** k
        logits.append(logits[-1] + term)
    return np.array(logits)
