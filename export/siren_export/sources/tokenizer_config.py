"""tokenizer_config.json: its keys are read, harmless, checked against tokenizer.json, or refused.

A bundle has tokenizer.json alone. What tokenizer_config.json sets beside it is therefore either
what tokenizer.json does anyway, or an error that names the key.
"""

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from siren_runtime.errors import CheckpointError

# Keys of chats, of decoding, of padding (which pooling masks), of where the files came from, and
# limits that the head's own max_length replaces.
_HARMLESS = frozenset(
    {
        "_commit_hash", "add_special_tokens", "backend", "chat_control_tokens", "chat_template",
        "clean_up_tokenization_spaces", "cls_token_id", "do_basic_tokenize", "errors",
        "from_slow", "is_local", "legacy", "local_files_only", "mask_token_id", "max_len",
        "max_length", "merges_file", "model_max_length", "name_or_path", "pad_to_multiple_of",
        "pad_token_id", "pad_token_type_id", "padding", "padding_side", "processor_class",
        "response_template", "return_attention_mask", "sp_model_kwargs",
        "spaces_between_special_tokens", "special_tokens_map_file", "stride", "tokenizer_class",
        "tokenizer_file", "transformers_version", "trim_offsets", "truncation",
        "truncation_strategy",
        "unk_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "use_default_system_prompt",
        "use_fast", "verbose", "vocab_file", "vocab_size", "wordpieces_prefix",
    }
)  # fmt: skip
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "fast_tokenizer_files": ([], None),
    "fix_mistral_regex": (False, None),
    "init_inputs": ([], None),
    "never_split": ([], None),
    "split_by_punct": (False, None),
    "split_special_tokens": (False, None),
    "truncation_side": ("right",),
    "vocab_type": ("spm", None),
}
_OF_TOKENS = frozenset(
    {"added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"}
)
_OF_NORMALIZER = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
_CHECKED = frozenset(
    {"add_bos_token", "add_eos_token", "add_prefix_space", "model_input_names", *_OF_NORMALIZER}
)
_SPACES = "\u0120\u2581 "  # of byte-level tokenizers, of SentencePiece's, and as it is


def check_tokenizer_config(
    config: Mapping[str, Any], tokenizer: Tokenizer, class_name: str, path: Path
) -> None:
    """Refuse settings that tokenizer.json does not have, and keys that are not known.

    Args:
        config: of tokenizer_config.json.
        tokenizer: of tokenizer.json.
        class_name: the tokenizer class that transformers takes; BERT's has defaults of its own.
        path: of tokenizer_config.json, for errors.

    Raises:
        CheckpointError: names the key.
    """
    for key, allowed in _FIXED.items():
        if key in config and config[key] not in allowed:
            raise _refusal(path, key, config[key], f"only {json.dumps(allowed[0])} is supported")
    known = _HARMLESS | _FIXED.keys() | _OF_TOKENS | _CHECKED | {"auto_map"}
    unknown = sorted(key for key in config if key not in known and not key.endswith("_token"))
    if unknown:
        raise CheckpointError(
            f"{path}: unknown keys {json.dumps(unknown)}; each could change how a text is "
            "tokenized, so none is dropped. Where you know that one does not, remove it"
        )
    names = config.get("model_input_names")
    if names is not None and not {"input_ids", "attention_mask"} <= set(names):
        raise _refusal(path, "model_input_names", names, "input_ids and attention_mask are needed")
    _check_ends(config, tokenizer, path)
    _check_prefix_space(config, tokenizer, path)
    _check_normalizer(config, tokenizer, class_name, path)
    cut = str((tokenizer.truncation or {}).get("direction", "right")).lower()
    if cut != "right" and "truncation_side" not in config:
        raise CheckpointError(
            f'{path.with_name("tokenizer.json")}: truncation.direction is "Left"; only the end '
            "of a long text can be cut"
        )


def _check_ends(config: Mapping[str, Any], tokenizer: Tokenizer, path: Path) -> None:
    """`add_bos_token` and `add_eos_token` against what tokenizer.json puts around a text."""
    tokens = tokenizer.encode("a").tokens
    for key, name, at in (("add_bos_token", "bos_token", 0), ("add_eos_token", "eos_token", -1)):
        wanted = config.get(key)
        if wanted is None:
            continue
        added = bool(tokens) and tokens[at] == content_of(config.get(name))
        if wanted != added:
            does = "does" if added else "does not"
            raise _refusal(path, key, wanted, f"tokenizer.json {does} add the {name}")


def _check_prefix_space(config: Mapping[str, Any], tokenizer: Tokenizer, path: Path) -> None:
    wanted = config.get("add_prefix_space")
    if wanted is None:
        return
    text = tokenizer.normalizer.normalize_str("a") if tokenizer.normalizer else "a"
    if tokenizer.pre_tokenizer:
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
        text = pieces[0][0] if pieces else ""
    if wanted != text.startswith(tuple(_SPACES)):
        does = "does not put" if wanted else "puts"
        raise _refusal(path, "add_prefix_space", wanted, f"tokenizer.json {does} one there")


def _check_normalizer(
    config: Mapping[str, Any], tokenizer: Tokenizer, class_name: str, path: Path
) -> None:
    """BERT's settings against what the normalizer of tokenizer.json does with a letter."""
    bert = class_name.removesuffix("Fast") == "BertTokenizer"
    defaults = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    wanted = {key: config[key] for key in _OF_NORMALIZER if key in config}
    if bert:
        wanted = {**defaults, **wanted}
    if wanted.get("strip_accents", False) is None:
        wanted["strip_accents"] = wanted.get("do_lower_case", False)

    def normalized(text: str) -> str:
        done = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        return unicodedata.normalize("NFC", done)

    does = {
        "do_lower_case": normalized("A") == "a",
        "strip_accents": normalized("\u00e9") == "e",
        "tokenize_chinese_chars": normalized("\u4e2d") == " \u4e2d ",
    }
    for key, value in wanted.items():
        if key == "tokenize_chinese_chars" and not bert:
            continue
        if value is not does[key]:
            found = f"tokenizer.json has {str(does[key]).lower()}"
            if key not in config:
                found += f"; this is the default of {class_name}"
            raise _refusal(path, key, value, found)


def content_of(token: Any) -> str | None:
    """The text of a token as tokenizer_config.json has it: a string, or an object with one."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _refusal(path: Path, key: str, found: Any, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {key} is {json.dumps(found)[:200]}; {why}. A bundle holds tokenizer.json alone; "
        "make the two agree: where transformers is installed, save the tokenizer anew by "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )
