"""Write GGUF files of a true shape with random blocks, streamed to disk."""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from .shapes import Shape
from .synthetic import decoder_tensors, write_head
from .texts import write_tokenizer

_TYPE = GGMLQuantizationType.Q4_K
_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
# Of the blocks' scales and minimums: the values have a deviation of about 0.02 around zero.
_FACTORS = np.array([1e-4, 5e-4], np.float16)


def write_synthetic_gguf(shape: Shape, folder: Path) -> tuple[Path, Path]:
    """Write `folder`/backbone/model.gguf, every matrix in Q4_K, and a head under `folder`/head.

    Args:
        shape: of a Qwen3 model, whose rows are whole blocks of 256.

    Returns:
        The GGUF file, beside which its tokenizer.json lies, and the folder of the head.
    """
    config = shape.config
    path, head = folder / "backbone" / "model.gguf", folder / "head"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tokenizer(path.parent, max_length=config["max_position_embeddings"])
    writer = GGUFWriter(path, config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(float(config["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_quantization_version(2)
    tensors = decoder_tensors(config)
    values, size = GGML_QUANT_SIZES[_TYPE]
    for name, dims in tensors.items():
        if len(dims) == 1:
            writer.add_tensor_info(_stored(name), dims, np.dtype(np.float32), 4 * dims[0])
        else:
            stored = (dims[0], dims[1] // values * size)
            nbytes = stored[0] * stored[1]
            writer.add_tensor_info(_stored(name), stored, np.dtype(np.uint8), nbytes, _TYPE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for dims in tensors.values():
        if len(dims) == 1:
            writer.write_tensor_data(rng.uniform(0.8, 1.2, dims[0]).astype(np.float32))
        else:
            blocks = rng.integers(0, 256, (dims[0], dims[1] // values, size), np.uint8)
            blocks[:, :, :4] = _FACTORS.view(np.uint8)
            writer.write_tensor_data(blocks)
    writer.close()
    write_head(head, shape, path)
    return path, head


def _stored(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{_NAMES[stem]}.{leaf}"
    _, _, block, part = stem.split(".", 3)
    return f"blk.{block}.{_NAMES[part]}.{leaf}"
