"""GGUF files of tiny backbones, written by the gguf package as llama.cpp's converter writes them.

    path = write_gguf(tmp_path / "model.gguf", backbone_folder("llama"), types={"mlp": "Q4_0"})

The converter's rules are spelled out here in the other direction than in the reader: names, the
order of q's and k's rows, what is added to norms, what the header says.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

_NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
_GEMMA_NAMES = {
    **_NAMES, "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
_CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 3, 4, 5, 6

Change = Callable[[gguf.GGUFWriter], None]


def write_gguf(
    path: Path,
    backbone: Path,
    *,
    types: Mapping[str, str] | None = None,
    pre: str = "gpt-2",
    values: Mapping[str, Any] | None = None,
    change: Change | None = None,
) -> Path:
    """Write the GGUF file of a backbone in a folder and return its path.

    Args:
        types: part of a tensor's name in the file -> its type; the first that fits counts, and
            what none fits is F32.
        pre: the name of a byte-level pre-tokenizer.
        values: over those of the header, by key; None leaves a key out.
        change: called with the writer before the file is written.
    """
    config = json.loads((backbone / "config.json").read_text(encoding="utf-8"))
    architecture = _ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, architecture)
    header = {**_model(config, architecture), **_tokenizer(backbone, config, pre), **(values or {})}
    for key, value in header.items():
        if value is not None:
            _add(writer, key, value)
    for name, array in _tensors(backbone, config, architecture).items():
        kind = next((t for part, t in (types or {}).items() if part in name), "F32")
        stored = gguf.GGMLQuantizationType[kind]
        data = _quantized(array, stored) if array.ndim == 2 else array
        writer.add_tensor(name, data, raw_dtype=stored if array.ndim == 2 else None)
    if change is not None:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _quantized(array: np.ndarray, stored: gguf.GGMLQuantizationType) -> np.ndarray:
    """Stored rows; of Q4_K and Q6_K, which the package does not quantize to, any.

    Those of Q4_K have the gain of one.
    """
    if stored == gguf.GGMLQuantizationType.Q6_K:
        return random_rows("Q6_K", *array.shape)
    if stored != gguf.GGMLQuantizationType.Q4_K:
        return gguf.quantize(array, stored)
    shape = (len(array), array.shape[1] // 256, 144)
    blocks = np.random.default_rng(array.size).integers(0, 256, shape, np.uint8)
    factors = np.array([0.006, 0.03], np.float16) / np.float16(array.shape[1] ** 0.5)
    blocks[:, :, :4] = factors.view(np.uint8)
    return blocks.reshape(len(array), -1)


def random_rows(kind: str, rows: int, channels: int) -> np.ndarray:
    """Stored rows of a quantized type, uint8 [rows, bytes]: any whose values are all finite."""
    stored, rng = gguf.GGMLQuantizationType[kind], np.random.default_rng(0)
    values, size = gguf.GGML_QUANT_SIZES[stored]
    blocks = np.zeros((rows * channels // values, size), np.uint8)
    made = np.zeros(len(blocks), bool)
    with np.errstate(all="ignore"):
        while not made.all():
            blocks[~made] = rng.integers(0, 256, (np.count_nonzero(~made), size), np.uint8)
            made = np.isfinite(gguf.dequantize(blocks, stored)).all(axis=1)
    return blocks.reshape(rows, -1)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    adder = {**kinds, str: writer.add_string}.get(type(value), writer.add_array)
    adder(key, value)


def _model(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    keys = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": hidden,
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
    }
    if architecture == "llama":
        keys["rope.dimension_count"] = head_dim
    if config.get("head_dim"):
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    keys["rope.freq_base"] = float(rope.get("rope_theta", 10000.0))
    if rope.get("rope_type") == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if architecture.startswith("gemma"):
        keys["attention.sliding_window"] = config["sliding_window"]
    if architecture == "gemma2":
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            keys[cap] = float(config[cap])
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def _tokenizer(backbone: Path, config: dict[str, Any], pre: str) -> dict[str, Any]:
    data = json.loads((backbone / "tokenizer.json").read_text(encoding="utf-8"))
    companion = json.loads((backbone / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocabulary = {**data["model"]["vocab"], **{t["content"]: t["id"] for t in data["added_tokens"]}}
    special = {t["content"]: t["special"] for t in data["added_tokens"]}
    tokens, kinds = [], []
    by_id = {index: token for token, index in vocabulary.items()}
    for index in range(config["vocab_size"]):
        token = by_id.get(index, f"[PAD{index}]")
        tokens.append(token)
        kind = 1 if index in by_id else _UNUSED
        if token in special:
            kind = _CONTROL if special[token] else _USER_DEFINED
        elif len(token) == 6 and token.startswith("<0x"):
            kind = _BYTE
        kinds.append(kind)
    if config["model_type"].startswith("gemma"):
        _rename_as_gemmas(tokens, kinds)
    keys: dict[str, Any] = {"tokens": tokens, "token_type": kinds}
    if data["model"].get("byte_fallback"):
        gemma = config["model_type"].startswith("gemma")
        keys |= {"model": "llama", "scores": [-float(i) for i in range(len(tokens))]}
        keys["add_space_prefix"] = not gemma
    else:
        merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
        keys |= {"model": "gpt2", "pre": pre, "merges": merges}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        if companion.get(f"{name}_token"):
            keys[f"{key}_token_id"] = vocabulary[companion[f"{name}_token"]]
    keys["add_bos_token"] = (data.get("post_processor") or {}).get("type") == "TemplateProcessing"
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def _rename_as_gemmas(tokens: list[str], kinds: list[int]) -> None:
    """Let special tokens be called as Gemma's are, which transformers adds where they are not."""
    for old, new in (("<s>", "<bos>"), ("</s>", "<eos>")):
        tokens[tokens.index(old)] = new
    tokens[-2:], kinds[-2:] = ["<pad>", "<mask>"], [_CONTROL, _CONTROL]


def _tensors(backbone: Path, config: dict[str, Any], architecture: str) -> dict[str, np.ndarray]:
    names = _GEMMA_NAMES if architecture.startswith("gemma") else _NAMES
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for name, array in load_file(backbone / "model.safetensors").items():
        stem, _, leaf = name.removeprefix("model.").rpartition(".")
        block = stem.split(".")[1] if stem.startswith("layers.") else None
        stem = names[stem if block is None else stem.split(".", 2)[2]]
        if architecture == "llama" and stem in heads:  # llama.cpp rotates neighbours
            halves = array.reshape(heads[stem], 2, -1, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and stem.endswith("norm"):
            array = array + 1
        scope = "" if block is None else f"blk.{block}."
        tensors[f"{scope}{stem}.{leaf}"] = np.ascontiguousarray(array, np.float32)
    return tensors
