"""The config of a model, in the form of config.json, from a GGUF header.

Keys of the architecture that are not read here could change a score, and are refused by name.
Where a header is silent, the value is the one that llama.cpp takes (its load_hparams).
"""

from collections.abc import Callable
from typing import Any

from siren_runtime.errors import CheckpointError

from .experts import MIXTURE
from .gguf_file import GgufFile
from .gguf_header import Header
from .gguf_names import ATTENTION_BIASES, MLP_BIASES, OUTPUT, stems_of
from .gguf_rope import read_rope

_EMBEDDING = "token_embd.weight"
# Of generation, of what follows the last hidden state, and of pooling, which the head does itself.
_HARMLESS = ("classifier.output_labels", "pooling_type")
_QUANTIZATION_VERSION = 2
# Gemma's largest models scale queries by their width and not by a head's; the number of blocks is
# all that tells them from the others.
_GEMMA2_27B_BLOCKS, _GEMMA3_27B_BLOCKS = 46, 62


def read_config(file: GgufFile, header: Header) -> dict[str, Any]:
    """Return the config of the model in `file`.

    Raises:
        CheckpointError: an architecture that is not supported, a key that is missing, of a wrong
            type or not known, or a setting that the graphs do not have.
    """
    _check_general(header)
    architecture = header.text("general.architecture")
    header.only(f"{architecture}.expert_count", 0, expected=f"the model {MIXTURE}")
    if architecture not in _READERS:
        raise CheckpointError(
            f"{file.path}: general.architecture is {architecture!r}; supported: "
            f"{', '.join(_READERS)}"
        )
    config = _common(file, header, architecture)
    config |= _READERS[architecture](file, header, config)
    header.note(*(f"{architecture}.{key}" for key in _HARMLESS))
    header.check_all_read(f"{architecture}.")
    return config


def _check_general(header: Header) -> None:
    """Refuse a file that is no whole model, or whose blocks are of another layout."""
    header.only("general.type", "model")
    header.only("general.quantization_version", _QUANTIZATION_VERSION)
    if "split.count" in header:
        parts = header.integer("split.count")
        if parts > 1:
            raise header.refusal(
                "split.count",
                "the model is in several files; join them by llama-gguf-split --merge",
            )


def _common(file: GgufFile, header: Header, prefix: str) -> dict[str, Any]:
    """What the config of every architecture has, but for the rope."""
    if _EMBEDDING not in file.tensors or len(file.tensors[_EMBEDDING].shape) != 2:
        raise CheckpointError(f"{file.path}: there is no matrix {_EMBEDDING!r}")
    rows = file.tensors[_EMBEDDING].shape[0]
    vocabulary = header.integer(f"{prefix}.vocab_size", rows)
    if vocabulary != rows:
        raise header.refusal(f"{prefix}.vocab_size", f"{_EMBEDDING} has {rows} rows")
    hidden = header.integer(f"{prefix}.embedding_length")
    heads = header.integer(f"{prefix}.attention.head_count")
    if f"{prefix}.attention.key_length" not in header and hidden % heads:
        raise header.refusal(
            f"{prefix}.attention.head_count", f"{hidden} channels are no whole heads"
        )
    head_dim = header.integer(f"{prefix}.attention.key_length", max(1, hidden // heads))
    if header.integer(f"{prefix}.attention.value_length", head_dim) != head_dim:
        raise header.refusal(
            f"{prefix}.attention.value_length", f"values must be as wide as keys, {head_dim}"
        )
    for key, neutral in (
        ("attention.causal", True),
        ("attention.clamp_kqv", 0.0),
        ("attention.max_alibi_bias", 0.0),
        ("use_parallel_residual", False),
        ("expert_used_count", 0),
        ("tensor_data_layout", "Meta AI original pth"),  # the one of every llama file
    ):
        header.only(f"{prefix}.{key}", neutral)
    _check_blocks(file, header, f"{prefix}.block_count")
    ids = (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    return {
        "model_type": prefix,
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": header.integer(f"{prefix}.feed_forward_length"),
        "num_hidden_layers": header.integer(f"{prefix}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.integer(f"{prefix}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": header.integer(f"{prefix}.context_length"),
        "rms_norm_eps": header.number(f"{prefix}.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": OUTPUT not in file.tensors,
        **{f"{n}_token_id": header.token(f"tokenizer.ggml.{k}_token_id", rows) for n, k in ids},
    }


def _check_blocks(file: GgufFile, header: Header, key: str) -> None:
    """Refuse a count of blocks that are not those which the file's tensors are of."""
    blocks = set[int]().union(*stems_of(file.tensors).values())
    count = header.integer(key)
    if len(blocks) != count or max(blocks, default=0) != count - 1:
        told = f"{len(blocks)} blocks, the last of them {max(blocks, default='none')}"
        raise header.refusal(key, f"the file has tensors of {told}")


def _biases(file: GgufFile) -> dict[str, Any]:
    """The flags that the header does not have: its tensors tell, those of any block."""
    found = stems_of(file.tensors)
    flags = {"attention_bias": ATTENTION_BIASES, "mlp_bias": MLP_BIASES}
    return {
        flag: True
        for flag, stems in flags.items()
        if any(f"{stem}.bias" in found for stem in stems)
    }


def _llama(file: GgufFile, header: Header, config: dict[str, Any]) -> dict[str, Any]:
    rope = read_rope(file, header, "llama", config["head_dim"])
    return {"rope_parameters": rope, **_biases(file)}


def _qwen(file: GgufFile, header: Header, config: dict[str, Any]) -> dict[str, Any]:
    rope = read_rope(file, header, config["model_type"], config["head_dim"])
    if config["model_type"] == "qwen3":
        return {"rope_parameters": rope, **_biases(file)}
    return {"rope_parameters": rope}  # Qwen2 has biases of q, k and v always


def _gemma2(file: GgufFile, header: Header, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "rope_parameters": read_rope(file, header, "gemma2", config["head_dim"]),
        "query_pre_attn_scalar": _query_scalar(config, _GEMMA2_27B_BLOCKS),
        "attn_logit_softcapping": header.number("gemma2.attn_logit_softcapping", 50.0),
        "final_logit_softcapping": header.number("gemma2.final_logit_softcapping", 30.0),
        "sliding_window": header.integer("gemma2.attention.sliding_window", 4096),
        "layer_types": _layer_types(header, "gemma2", config["num_hidden_layers"], 2),
    }


def _gemma3(file: GgufFile, header: Header, config: dict[str, Any]) -> dict[str, Any]:
    window = header.number("gemma3.rope.freq_base_swa", 10000.0)
    gemma = {
        "model_type": "gemma3_text",
        "rope_parameters": {
            "full_attention": read_rope(file, header, "gemma3", config["head_dim"]),
            "sliding_attention": {"rope_type": "default", "rope_theta": window},
        },
        "query_pre_attn_scalar": _query_scalar(config, _GEMMA3_27B_BLOCKS),
        "sliding_window": header.integer("gemma3.attention.sliding_window"),
        "layer_types": _layer_types(header, "gemma3", config["num_hidden_layers"], 6),
    }
    if "gemma3.final_logit_softcapping" in header:
        gemma["final_logit_softcapping"] = header.number("gemma3.final_logit_softcapping")
    return gemma


def _query_scalar(config: dict[str, Any], largest: int) -> int:
    """Queries are scaled by the inverse root of this."""
    if config["num_hidden_layers"] == largest:
        return int(config["hidden_size"]) // int(config["num_attention_heads"])
    return int(config["head_dim"])


def _layer_types(header: Header, prefix: str, blocks: int, default: int) -> list[str]:
    """Which blocks have a window: all but every `default`-th, unless the header says otherwise."""
    key = f"{prefix}.attention.sliding_window_pattern"
    if header.is_array(key):  # a flag for each block
        windowed = header.array(key, "b", blocks)
    else:
        pattern = header.integer(key, default)
        windowed = [(block + 1) % pattern != 0 for block in range(blocks)]
    return ["sliding_attention" if slides else "full_attention" for slides in windowed]


_READERS: dict[str, Callable[[GgufFile, Header, dict[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}
SUPPORTED = tuple(_READERS)
