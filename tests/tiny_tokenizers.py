"""Tokenizers of the tiny backbones, trained on the corpus and of the form of published ones."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, WordPiece

from texts import CORPUS

VOCABULARY = 384
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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
        vocab_size=VOCABULARY,
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

    Published sentence encoders are saved so; the head's own max_length must win. Its trainer makes
    another vocabulary each time, so the words are counted here.
    """
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    words = Counter(
        word
        for text in CORPUS
        for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(
            normalizer.normalize_str(text)
        )
    )
    letters = sorted({letter for word in words for letter in word})
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters)]
    pieces += sorted((w for w in words if len(w) > 1), key=lambda word: (-words[word], word))
    vocabulary = {piece: number for number, piece in enumerate(pieces[:VOCABULARY])}
    tokenizer = tokenizers.Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(specials)
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


def _write_roberta_tokenizer(folder: Path) -> None:
    """Byte-level BPE as in RoBERTa, with a padding token that is not the first and has a text."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _train_byte_level(tokenizer, specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    names = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    _save_tokenizer(folder, tokenizer, **{f"{name}_token": text for name, text in names.items()})


TOKENIZERS = {
    "qwen3": _write_qwen_tokenizer,
    "qwen2": _write_qwen_tokenizer,
    "llama": _write_llama_tokenizer,
    "gpt_oss": _write_llama_tokenizer,
    "qwen3_moe": _write_qwen_tokenizer,
    "mistral": _write_mistral_tokenizer,
    "granite": _write_llama_tokenizer,
    "smollm3": _write_llama_tokenizer,
    "olmo2": _write_qwen_tokenizer,
    "phi": _write_qwen_tokenizer,
    "phi3": _write_mistral_tokenizer,
    "gemma2": _write_mistral_tokenizer,
    "gemma3_text": _write_mistral_tokenizer,
    "bert": _write_bert_tokenizer,
    "roberta": _write_roberta_tokenizer,
    "xlm-roberta": _write_roberta_tokenizer,
    "modernbert": _write_bert_tokenizer,
    "deberta-v2": _write_bert_tokenizer,
}


def _train_byte_level(tokenizer: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> None:
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)


def _save_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer, **tokens: str) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
