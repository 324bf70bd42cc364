"""Makers of tiny random backbones and heads, as real files, for every test that needs a model.

    backbone = make_backbone(tmp_path / "backbone", BACKBONES["qwen3"])
    artifact = make_artifact(tmp_path / "artifact", backbone, layers=[0, 2])

Backbones are saved by transformers, so their files are those of a published checkpoint. Norm
weights and biases are random too: a graph that forgets one does not agree by luck.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, WordPiece
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from reference import Pooling, load_reference
from siren_bench.synthetic import write_artifact
from texts import CORPUS, TEXTS

MAX_LENGTH = 48  # of make_artifact, in tokens; well below what every tiny backbone takes

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_VOCABULARY = 384
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SCORE_SPREAD = 1.5  # standard deviation of the log-odds that make_artifact aims at


@dataclass(frozen=True)
class BackboneSpec:
    """What make_backbone writes.

    Attributes:
        model_type: As in config.json.
        config: Arguments of the transformers configuration, over the tiny defaults.
        dtype: Of the stored weights.
        config_form: Major version of transformers whose config.json is written.
        written: Keys put into config.json as they are, after transformers has saved it.
        language_model: Save the model with its language-model head, so that names have the
            prefix "model." or "bert."; else the bare model, without a prefix.
        sharded: Several safetensors files with an index.
    """

    model_type: Literal["qwen3", "qwen2", "llama", "mistral", "bert"]
    config: Mapping[str, Any] = field(default_factory=dict)
    dtype: Literal["F32", "F16", "BF16"] = "F32"
    config_form: Literal[4, 5] = 5
    written: Mapping[str, Any] = field(default_factory=dict)
    language_model: bool = True
    sharded: bool = False


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

BACKBONES: dict[str, BackboneSpec] = {
    "qwen3": BackboneSpec("qwen3", {"tie_word_embeddings": True}),
    "qwen3-untied": BackboneSpec("qwen3", {"tie_word_embeddings": False}, config_form=4),
    "qwen3-bf16-sharded": BackboneSpec("qwen3", dtype="BF16", config_form=4, sharded=True),
    "qwen3-f16-bare": BackboneSpec("qwen3", dtype="F16", language_model=False),
    "qwen3-attention-bias": BackboneSpec("qwen3", {"attention_bias": True}),
    "qwen2": BackboneSpec("qwen2"),
    "qwen2-idle-window": BackboneSpec(
        "qwen2", config_form=4, written={"use_sliding_window": False, "sliding_window": 8}
    ),
    "qwen2-bf16-bare-sharded": BackboneSpec(
        "qwen2", dtype="BF16", language_model=False, sharded=True
    ),
    "llama": BackboneSpec("llama"),
    "llama-4": BackboneSpec("llama", config_form=4),
    "llama-llama3-rope": BackboneSpec("llama", {"rope_parameters": _LLAMA3_ROPE}),
    "llama-llama3-rope-4": BackboneSpec(
        "llama", {"rope_parameters": _LLAMA3_ROPE}, dtype="BF16", config_form=4
    ),
    "llama-linear-rope": BackboneSpec("llama", {"rope_parameters": _LINEAR_ROPE}),
    "llama-linear-rope-4": BackboneSpec(
        "llama",
        {"rope_parameters": _LINEAR_ROPE},
        config_form=4,
        # The key "type" is how rope scaling was written before it was called "rope_type".
        written={"rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "llama-attention-bias": BackboneSpec("llama", {"attention_bias": True}),
    "llama-mlp-bias": BackboneSpec("llama", {"mlp_bias": True}),
    "llama-head-dim": BackboneSpec("llama", {"head_dim": 8}, dtype="F16"),
    "llama-multi-head": BackboneSpec("llama", {"num_key_value_heads": 4}),
    "mistral": BackboneSpec("mistral", {"sliding_window": None}),
    "mistral-window": BackboneSpec("mistral", {"sliding_window": MAX_LENGTH}, config_form=4),
    "bert": BackboneSpec("bert", {"hidden_act": "gelu"}),
    "bert-bare": BackboneSpec("bert", language_model=False, config_form=4),
    "bert-gelu-new": BackboneSpec("bert", {"hidden_act": "gelu_new"}),
    "bert-gelu-tanh-f16": BackboneSpec("bert", {"hidden_act": "gelu_pytorch_tanh"}, dtype="F16"),
    "bert-relu-bf16-sharded": BackboneSpec(
        "bert", {"hidden_act": "relu"}, dtype="BF16", sharded=True
    ),
}

# One of each family, which tests of graphs, passes, plans and streams go through.
DECODERS = ("qwen3", "qwen2", "llama-llama3-rope", "mistral")
FAMILIES = (*DECODERS, "bert")

_TINY: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
_TINY_DECODER = {**_TINY, "num_key_value_heads": 2, "rms_norm_eps": 0.01}
_TINY_OF_TYPE: dict[str, dict[str, Any]] = {
    "qwen3": {**_TINY_DECODER, "head_dim": 24, "rope_parameters": {"rope_theta": 10000.0}},
    "qwen2": {**_TINY_DECODER, "rope_parameters": {"rope_theta": 1000.0}},
    "llama": _TINY_DECODER,
    "mistral": {**_TINY_DECODER, "head_dim": 24},
    "bert": {**_TINY, "type_vocab_size": 2, "layer_norm_eps": 0.01},
}


def make_backbone(folder: Path, spec: BackboneSpec, *, seed: int = 0) -> Path:
    """Write a tiny random backbone with its tokenizer and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny = {**_TINY_OF_TYPE[spec.model_type], **spec.config}
    if "rope_parameters" in tiny:
        tiny["rope_parameters"] = {"rope_type": "default", **tiny["rope_parameters"]}
    config = AutoConfig.for_model(spec.model_type, **tiny)
    model_class = AutoModelForCausalLM if spec.language_model else AutoModel
    model = model_class.from_config(config)
    _randomise(model, seed)
    model.to(DTYPES[spec.dtype])
    model.save_pretrained(folder, max_shard_size="100KB" if spec.sharded else "5GB")
    _rewrite_config(folder / "config.json", spec)
    _TOKENIZERS[spec.model_type](folder)
    return folder


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
    rng = np.random.default_rng(seed)
    layers = range(config["num_hidden_layers"]) if layers is None else layers
    selected = {
        layer: rng.permutation(config["hidden_size"])[: channels + position % 3]
        for position, layer in enumerate(layers)
    }
    write_artifact(
        folder,
        str(backbone.resolve()),
        selected,
        hidden_dims,
        pooling=pooling,
        layer_weights={
            layer: float(rng.uniform(0.1, 1.0))
            for position, layer in enumerate(layers)
            if position % 3 != 1
        },
        dropout_rates=(
            [0.0 if i % 2 else 0.3 for i in range(len(hidden_dims))]
            if dropout_rates is None
            else dropout_rates
        ),
        classes=classes,
        max_length=max_length,
        threshold=threshold,
        seed=seed,
    )
    _spread_scores(folder)
    return folder


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Draw every parameter: matrices of gain about one, norm weights near one, biases near zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 2:
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
        if rope is not None:
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


def _write_qwen_tokenizer(folder: Path) -> None:
    """Byte-level BPE as in Qwen: no special tokens added, padded with the end of text.

    transformers 5 sets normalizer and pre-tokenizer of a qwen2 model itself, so here they are
    those of the published files.
    """
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    _train_byte_level(tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    _save_tokenizer(folder, tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _write_llama_tokenizer(folder: Path) -> None:
    """Byte-level BPE as in Llama 3: a BOS in front, no padding token of its own.

    One special token is not among the markers that cleaning removes.
    """
    bos = "<|begin_of_text|>"
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _train_byte_level(tokenizer, [bos, "<|end_of_text|>", "<|eot_id|>", "<|reserved_token_0|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    _save_tokenizer(folder, tokenizer, bos_token=bos, eos_token="<|end_of_text|>")


def _write_mistral_tokenizer(folder: Path) -> None:
    """BPE with byte fall-back over "▁" for spaces, as in Mistral and Llama 2."""
    specials = ["<unk>", "<s>", "</s>"]
    tokenizer = tokenizers.Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # The trainer marks the byte tokens special; in a published file only these three are.
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in specials]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    _save_tokenizer(
        folder, tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def _write_bert_tokenizer(folder: Path) -> None:
    """WordPiece with [CLS] and [SEP], saved with padding and truncation switched on.

    Published sentence encoders are saved so; the head's own max_length must win.
    """
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = tokenizers.Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=_VOCABULARY, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.enable_padding(length=32, pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(max_length=32)
    _save_tokenizer(
        folder,
        tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


_TOKENIZERS = {
    "qwen3": _write_qwen_tokenizer,
    "qwen2": _write_qwen_tokenizer,
    "llama": _write_llama_tokenizer,
    "mistral": _write_mistral_tokenizer,
    "bert": _write_bert_tokenizer,
}


def _train_byte_level(tokenizer: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> None:
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)


def _save_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer, **tokens: str) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
