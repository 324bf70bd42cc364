"""Makers of tiny random backbones and heads, as real files, for every test that needs a model.

    backbone = make_backbone(tmp_path / "backbone", BACKBONES["qwen3"])
    artifact = make_artifact(tmp_path / "artifact", backbone, layers=[0, 2])

Backbones are saved by transformers, so their files are those of a published checkpoint. Norm
weights and biases are random too: a graph that forgets one does not agree by luck.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from backbones import (
    MAX_LENGTH,
    MULTIMODAL,
    TINY_OF_TYPE,
    TINY_OUTER,
    TINY_VISION,
    TINY_VISION_OF,
    BackboneSpec,
)
from reference import Pooling, auto_class, load_reference
from siren_bench.subjects.synthetic import random_dense
from siren_export.heads.mlp_artifact import write_mlp_artifact
from siren_export.heads.selected import LayerSelection
from texts import TEXTS
from tiny_tokenizers import TOKENIZERS

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SCORE_SPREAD = 1.5  # standard deviation of the log-odds that make_artifact aims at


def make_backbone(folder: Path, spec: BackboneSpec, *, seed: int = 0) -> Path:
    """Write a tiny random backbone with its tokenizer and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = _make_config(spec)
    model_class = auto_class(config) if spec.language_model else AutoModel
    model = model_class.from_config(config)
    _randomise(model, seed)
    model.to(DTYPES[spec.dtype])
    model.save_pretrained(folder, max_shard_size="100KB" if spec.sharded else "5GB")
    _rewrite_config(folder / "config.json", spec)
    TOKENIZERS[MULTIMODAL.get(spec.model_type, (spec.model_type,))[0]](folder)
    return folder


def _make_config(spec: BackboneSpec) -> PreTrainedConfig:
    text, vision = MULTIMODAL.get(spec.model_type, (spec.model_type, None))
    tiny = {**TINY_OF_TYPE[text], **spec.config}
    if "rope_parameters" in tiny:
        tiny["rope_parameters"] = {"rope_type": "default", **tiny["rope_parameters"]}
    config = AutoConfig.for_model(text, **tiny)
    if vision is None:
        return config
    other = {"model_type": vision, **TINY_VISION, **TINY_VISION_OF.get(spec.model_type, {})}
    return AutoConfig.for_model(
        spec.model_type,
        text_config=config.to_dict(),
        mm_tokens_per_image=4,
        image_token_index=3,
        **{"audio_config" if vision.endswith("_encoder") else "vision_config": other},
        **TINY_OUTER.get(spec.model_type, {}),
    )


def make_artifact(
    folder: Path,
    backbone: Path,
    *,
    layers: Sequence[int] | None = None,
    pooling: Pooling = "residual_mean",
    channels: int = 12,
    hidden_dims: Sequence[int] = (24, 16),
    dropout_rates: Sequence[float] | None = None,
    classes: int = 2,
    max_length: int = MAX_LENGTH,
    threshold: float = 0.5,
    seed: int = 0,
) -> Path:
    """Write a random SIREN head for a backbone and return its folder.

    The channels of a layer stand in random order, some layers have no weight (which means 1.0),
    and the last matrix is scaled so that the scores of TEXTS spread over (0, 1).

    Args:
        layers: Blocks to read, all by default.
        channels: How many channels are read of each block, about.
        dropout_rates: One a hidden layer; by default alternately 0.3 and 0, so that the numbering
            of the tensors has both kinds of step.
    """
    config = json.loads((backbone / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    rng = np.random.default_rng(seed)
    layers = range(config["num_hidden_layers"]) if layers is None else layers
    selected = [
        rng.permutation(config["hidden_size"])[: channels + position % 3]
        for position in range(len(layers))
    ]
    unweighted = set(layers[1::3])
    selections = [
        LayerSelection(layer, read, 1.0 if layer in unweighted else float(rng.uniform(0.1, 1.0)))
        for layer, read in zip(layers, selected, strict=True)
    ]
    write_mlp_artifact(
        folder,
        model_id=str(backbone.resolve()),
        pooling=pooling,
        layers=selections,
        dense=random_dense(selections, (*hidden_dims, classes), seed),
        max_length=max_length,
        threshold=threshold,
        dropout_rates=(
            [0.0 if i % 2 else 0.3 for i in range(len(hidden_dims))]
            if dropout_rates is None
            else dropout_rates
        ),
        unweighted=unweighted,
    )
    _spread_scores(folder)
    return folder


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Draw every parameter: matrices of gain about one, norm weights near one, biases near zero.

    By numpy, whose numbers are the same on every machine; torch's depend on the CPU's vectors.
    """
    generator = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        noise = torch.from_numpy(generator.standard_normal(parameter.shape, dtype=np.float32))
        if parameter.dim() >= 2:
            value = noise * (1.0 if "embed" in name else 1.5 * parameter.shape[1] ** -0.5)
        elif name.endswith("bias"):
            value = noise * 0.3
        else:
            value = 1 + noise * 0.3
        parameter.data.copy_(value)


def _rewrite_config(path: Path, spec: BackboneSpec) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    if spec.config_form == 4:
        config["transformers_version"] = "4.51.0"
        config["torch_dtype"] = config.pop("dtype")
        rope = config.pop("rope_parameters", None)
        if rope is not None and "rope_type" in rope:
            config["rope_theta"] = rope.pop("rope_theta")
            config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config.update(spec.written)
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _spread_scores(artifact: Path) -> None:
    """Scale and shift the last matrix so that the scores of TEXTS spread around one half."""
    guard = load_reference(artifact)
    with torch.no_grad():
        logits = guard._mlp(guard._aggregate_features(TEXTS))
    path = artifact / "siren.safetensors"
    tensors = load_file(path)
    last = max(int(name.split(".")[1]) for name in tensors)
    scale = (_SCORE_SPREAD / (logits[:, 1] - logits[:, 0]).std()).item()
    weight, bias = tensors[f"network.{last}.weight"], tensors[f"network.{last}.bias"]
    tensors[f"network.{last}.weight"] = weight * np.float32(scale)
    tensors[f"network.{last}.bias"] = (bias - logits.mean(dim=0).numpy()) * np.float32(scale)
    save_file(tensors, path)


LABELS = ("hate", "violence", "self-harm")


def make_labels(
    folder: Path,
    backbone: Path,
    *,
    layers: Sequence[int],
    labels: Sequence[str] = LABELS,
    seed: int = 7,
    **options: Any,
) -> Path:
    """Write a random head of independent labels for a backbone and return its folder."""
    make_artifact(
        folder, backbone, layers=layers, classes=max(len(labels), 2), seed=seed, **options
    )
    config = json.loads((folder / "siren_config.json").read_text())
    config["task"] = "categories"
    config["mlp"] |= {"num_classes": len(labels), "class_names": list(labels)}
    (folder / "siren_config.json").write_text(json.dumps(config))
    path = folder / "siren.safetensors"
    tensors = load_file(path)
    last = max(int(name.split(".")[1]) for name in tensors)
    for part in ("weight", "bias"):
        name = f"network.{last}.{part}"
        tensors[name] = np.ascontiguousarray(tensors[name][: len(labels)])
    save_file(tensors, path)
    return folder


def make_forecast(
    folder: Path,
    backbone: Path,
    *,
    layers: Sequence[int] = (0, 2),
    hidden_dims: Sequence[int] = (),
    **options: Any,
) -> Path:
    """Write a random forecast head for a backbone, linear by default, and return its folder."""
    make_labels(
        folder, backbone, layers=layers, labels=("harm",), hidden_dims=hidden_dims, **options
    )
    path = folder / "siren_config.json"
    config = json.loads(path.read_text())
    config["task"] = "forecast"
    del config["mlp"]["class_names"]
    path.write_text(json.dumps(config))
    return folder
