"""Write checkpoints and heads of a true shape with random weights, streamed to disk.

Latency and memory do not depend on the values of the weights, so a random checkpoint of the true
shape stands in for one that cannot be downloaded. Its tokenizer is a small byte-level BPE, not
the model's own: a text has other token ids there, so benchmarks count tokens, not characters.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from siren_bench.records.progress import WRITING
from siren_export.heads.mlp import Dense
from siren_export.heads.mlp_artifact import write_mlp_artifact
from siren_export.heads.selected import LayerSelection
from siren_runtime.bundle.progress import Progress, silent

from .shapes import Shape
from .texts import write_tokenizer

_BLOCK = (1 << 24) + 43  # weights drawn once and repeated; odd, so that no two rows are equal
_STANDARD_DEVIATION = 0.02  # the initializer_range of these models: activations stay near one
_SHARD_BYTES = 5_000_000_000

Tensors = dict[str, tuple[int, ...]]


def write_head(folder: Path, shape: Shape, backbone: Path, *, max_length: int = 512) -> None:
    """Write a random head of `shape` that reads every layer of the checkpoint in `backbone`."""
    rng = np.random.default_rng(0)
    channels = {
        layer: rng.choice(shape.hidden_size, shape.channels_per_layer, replace=False)
        for layer in range(shape.layers)
    }
    write_artifact(folder, backbone, channels, shape.hidden_dims, max_length=max_length)


def checkpoint_bytes(config: Mapping[str, Any]) -> int:
    """Return the number of bytes of the checkpoint's tensors."""
    return sum(map(_size, decoder_tensors(config).values()))


def decoder_tensors(config: Mapping[str, Any]) -> Tensors:
    """Return the names and shapes of the tensors of a Qwen3 or Llama checkpoint, in file order."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    head_dim = config["head_dim"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    tensors: Tensors = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        tensors[f"{block}.input_layernorm.weight"] = (hidden,)
        tensors[f"{block}.self_attn.q_proj.weight"] = (queries, hidden)
        tensors[f"{block}.self_attn.k_proj.weight"] = (keys, hidden)
        tensors[f"{block}.self_attn.v_proj.weight"] = (keys, hidden)
        if config["model_type"] == "qwen3":
            tensors[f"{block}.self_attn.q_norm.weight"] = (head_dim,)
            tensors[f"{block}.self_attn.k_norm.weight"] = (head_dim,)
        tensors[f"{block}.self_attn.o_proj.weight"] = (hidden, queries)
        tensors[f"{block}.post_attention_layernorm.weight"] = (hidden,)
        tensors[f"{block}.mlp.gate_proj.weight"] = (intermediate, hidden)
        tensors[f"{block}.mlp.up_proj.weight"] = (intermediate, hidden)
        tensors[f"{block}.mlp.down_proj.weight"] = (hidden, intermediate)
    tensors["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (config["vocab_size"], hidden)
    return tensors


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    shard_bytes: int = _SHARD_BYTES,
    progress: Progress = silent,
) -> None:
    """Write config.json, bfloat16 safetensors (with an index where sharded) and a tokenizer.

    One block of random weights is kept in memory and repeated; matrices have the models'
    standard deviation 0.02, norm weights lie around one.

    Args:
        config: A Qwen3 or Llama config.json in the form of transformers 4.
        seed: Of every weight.
        shard_bytes: Largest size of a safetensors file, in bytes.
        progress: Called after each tensor, with bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(folder, max_length=config["max_position_embeddings"])

    weights = _Weights(seed)
    shards = _shards(decoder_tensors(config), shard_bytes)
    index: dict[str, str] = {}
    written, total = 0, checkpoint_bytes(config)
    for number, tensors in enumerate(shards, start=1):
        name = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        index.update(dict.fromkeys(tensors, name))
        with (folder / name).open("wb") as file:
            file.write(_safetensors_header(tensors))
            for shape in tensors.values():
                for piece in weights.draw(shape):
                    file.write(piece.view(np.uint16).data)
                written += _size(shape)
                progress(WRITING, written, total)
    if len(shards) > 1:
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def write_artifact(
    folder: Path,
    backbone: Path,
    channels: Mapping[int, np.ndarray],
    hidden_dims: Sequence[int],
    *,
    max_length: int,
) -> None:
    """Write a SIREN head with random weights: siren_config.json and siren.safetensors.

    Args:
        backbone: Its folder.
        channels: Block index to the channels read there, int64 [n], in feature order.
        max_length: In tokens.
    """
    layers = [LayerSelection(layer, selected, 1.0) for layer, selected in channels.items()]
    write_mlp_artifact(
        folder,
        model_id=str(backbone.resolve()),
        pooling="residual_mean",
        layers=layers,
        dense=random_dense(layers, (*hidden_dims, 2)),
        max_length=max_length,
        threshold=0.5,
        dropout_rates=[0.3] * len(hidden_dims),  # as in llm-siren's training
        unweighted=channels.keys(),
    )


def random_dense(
    layers: Sequence[LayerSelection], widths: Sequence[int], seed: int = 0
) -> list[Dense]:
    """Draw an MLP over the features of `layers`, whose layers are so wide, the last the classes.

    Matrices have a gain of about one, biases lie near zero.
    """
    rng = np.random.default_rng(seed)
    dense = []
    inputs = sum(layer.channels.size for layer in layers)
    for width in widths:
        scale = np.float32(inputs**-0.5)
        weight = scale * rng.standard_normal((width, inputs), dtype=np.float32)
        bias = np.float32(0.1) * rng.standard_normal(width, dtype=np.float32)
        dense.append(Dense(weight, bias))
        inputs = width
    return dense


class _Weights:
    """A random block of weights that is read round and round."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        block = self._rng.standard_normal(_BLOCK, dtype=np.float32)
        self._block = (block * np.float32(_STANDARD_DEVIATION)).astype(ml_dtypes.bfloat16)
        self._at = 0

    def draw(self, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Yield the next weights of a matrix or of a norm, flat and in pieces."""
        count = int(np.prod(shape))
        if len(shape) == 1:
            yield self._rng.uniform(0.8, 1.2, count).astype(ml_dtypes.bfloat16)
            return
        while count:
            piece = self._block[self._at : self._at + count]
            yield piece
            count -= piece.size
            self._at = (self._at + piece.size) % _BLOCK


def _size(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def _shards(tensors: Tensors, limit: int) -> list[Tensors]:
    """Cut the tensors, in order, into groups of at most `limit` bytes each."""
    shards: list[Tensors] = [{}]
    room = limit
    for name, shape in tensors.items():
        if _size(shape) > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = shape
        room -= _size(shape)
    return shards


def _safetensors_header(tensors: Tensors) -> bytes:
    """Return the length-prefixed JSON header of a safetensors file of bfloat16 tensors."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        entries[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + _size(shape)],
        }
        offset += _size(shape)
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header
