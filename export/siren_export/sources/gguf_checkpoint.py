"""A GGUF file as a checkpoint: its config, tokenizer and weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.errors import CheckpointError

from .gguf_beside import check_beside
from .gguf_config import read_config
from .gguf_file import GgufFile
from .gguf_header import Header
from .gguf_tokenizer import build_tokenizer
from .gguf_vocabulary import TOKENS_KEY, read_vocabulary
from .gguf_weights import GgufWeights, open_weights
from .tokenizer import read_tokenizer

_CHAT_KEY = "tokenizer.chat_template"
# What templates call special tokens -> the header's name of each.
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


@dataclass(frozen=True, eq=False)
class GgufCheckpoint:
    """What a GGUF file holds, as transformers would have it in a folder.

    Attributes:
        config: as config.json has it.
        tokenizer_json: of the tokenizer.json beside the file, else made of the header.
        weights: by the names of transformers.
        tokenizer: what the header calls its tokenizer: `llama` for SentencePiece's, else the name
            of the pre-tokenizer. None where tokenizer.json lies beside the file.
    """

    config: dict[str, Any]
    tokenizer_json: bytes
    weights: GgufWeights
    tokenizer: str | None


def open_gguf(path: Path, source: str) -> GgufCheckpoint:
    """Open a GGUF file: read its header.

    Raises:
        CheckpointError: the file is damaged, or holds what is not supported.
    """
    file = GgufFile(path)
    header = Header(path, file.metadata)
    config = read_config(file, header)
    architecture = header.text("general.architecture")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    weights = open_weights(file, source, architecture, heads, kv_heads)
    beside = path.with_name(TOKENIZER_FILE)
    if beside.exists():
        data, name = read_tokenizer(path.parent, config), None
        check_beside(beside, data, header)
    else:
        data = build_tokenizer(header, architecture)
        kind = header.text("tokenizer.ggml.model")
        name = header.text("tokenizer.ggml.pre") if kind == "gpt2" else kind
    if TOKENS_KEY in header and len(header.strings(TOKENS_KEY)) != config["vocab_size"]:
        raise header.refusal(TOKENS_KEY, f"the embedding has {config['vocab_size']:,} rows")
    return GgufCheckpoint(config, data, weights, name)


def read_gguf_chat(path: Path) -> tuple[str, dict[str, str]]:
    """The chat template of a GGUF file's header, and the tokens by what templates call them.

    Raises:
        CheckpointError: the file is damaged, or has none.
    """
    header = Header(path, GgufFile(path).metadata)
    if _CHAT_KEY not in header:
        raise CheckpointError(
            f"{path}: the header has no {_CHAT_KEY}; a trajectory head reads what a chat template "
            "renders, so give a file, or a folder, that has the one that the head was fitted on"
        )
    tokens = read_vocabulary(header).tokens
    ids = {n: header.token(f"tokenizer.ggml.{k}_token_id", len(tokens)) for n, k in _NAMED.items()}
    return header.text(_CHAT_KEY), {n: tokens[i] for n, i in ids.items() if i is not None}
