"""What a GGUF file calls the tensors of a model, and what transformers calls them.

A tensor that is not named here could change a score, so it is refused by name and never dropped.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from siren_runtime.errors import CheckpointError

ROPE_FACTORS = "rope_freqs.weight"  # read with the config
OUTPUT = "output.weight"  # of the language-model head

_OUTSIDE: Mapping[str, str] = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
}
_BLOCK: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA = {
    **_BLOCK,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
BLOCK_NAMES: Mapping[str, Mapping[str, str]] = {
    "llama": _BLOCK,
    "qwen2": _BLOCK,
    "qwen3": {**_BLOCK, **_QK_NORMS},
    "gemma2": _GEMMA,
    "gemma3": {**_GEMMA, **_QK_NORMS},
}
_OF_ATTENTION = ("attn_q", "attn_k", "attn_v")
ATTENTION_BIASES = (*_OF_ATTENTION, "attn_output")  # where a model has biases, of all of these
MLP_BIASES = ("ffn_gate", "ffn_up", "ffn_down")
_BIASES: Mapping[str, tuple[str, ...]] = {
    "llama": (*ATTENTION_BIASES, *MLP_BIASES),
    "qwen2": _OF_ATTENTION,
    "qwen3": ATTENTION_BIASES,
}
_STORED = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,4})\.)?([a-z_]{1,40})\.(weight|bias)", re.ASCII)


def stems_of(stored: Iterable[str]) -> dict[str, set[int]]:
    """The tensors of blocks, without their number (`attn_q.bias`) -> the blocks that have them."""
    found: dict[str, set[int]] = {}
    for name in stored:
        match = _STORED.fullmatch(name)
        if match is not None and match[1] is not None:
            found.setdefault(f"{match[2]}.{match[3]}", set()).add(int(match[1]))
    return found


def names_of_tensors(architecture: str, stored: Iterable[str], path: Path) -> dict[str, str]:
    """Name of the bare model (`layers.0.mlp.up_proj.weight`) -> name in the file.

    Raises:
        CheckpointError: a tensor has a name that models of the architecture do not have.
    """
    names = {}
    for name in stored:
        if name == ROPE_FACTORS:
            continue
        match = _STORED.fullmatch(name)
        block, stem, leaf = match.groups() if match else (None, "", "")
        known = _OUTSIDE if block is None else BLOCK_NAMES[architecture]
        biased = () if block is None else _BIASES.get(architecture, ())
        if stem not in known or (leaf == "bias" and stem not in biased):
            raise CheckpointError(
                f"{path}: tensor {name!r} is none that a model of architecture {architecture!r} "
                "has; what it is for could change a score, so it is not dropped"
            )
        scope = "" if block is None else f"layers.{block}."
        names[f"{scope}{known[stem]}.{leaf}"] = name
    return names
