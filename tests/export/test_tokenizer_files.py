"""What stands beside tokenizer.json is merged as transformers merges it, or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.tokens import compare_tokens
from siren_runtime.errors import CheckpointError

NEW = "<new>"
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
TEXTS = [f"a {NEW} b{NEW}c", f"{NEW}", "Hello", " \n "]


def token(content: str = NEW, **flags: Any) -> dict[str, Any]:
    return {"content": content, **FLAGS, "special": True, **flags}


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Put keys into a JSON file of the checkpoint."""
    path = folder / name
    before = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps({**before, **content}), encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path, backbone_folder: Callable[[str], Path]) -> Callable[[str], Path]:
    """A copy of a tiny backbone, to be changed."""
    return lambda name: shutil.copytree(backbone_folder(name), tmp_path / name)


# What declares a token, as a file and its keys; N stands for the id after the last one.
DECLARED: dict[str, tuple[str, dict[str, Any]]] = {
    "added_tokens.json": ("added_tokens.json", {NEW: "N"}),
    "added_tokens_decoder": ("tokenizer_config.json", {"added_tokens_decoder": {"N": token()}}),
    "added_tokens_decoder-plain": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"N": token(special=False, normalized=True)}},
    ),
    "added_tokens_decoder-lstrip": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"N": token(lstrip=True)}},
    ),
    "extra_special_tokens": ("tokenizer_config.json", {"extra_special_tokens": [NEW]}),
    "extra_special_tokens-named": (
        "tokenizer_config.json",
        {"extra_special_tokens": {"new_token": NEW}},
    ),
    "additional_special_tokens": ("tokenizer_config.json", {"additional_special_tokens": [NEW]}),
    "named": ("tokenizer_config.json", {"sep_token": NEW}),
    "named-with-flags": (
        "tokenizer_config.json",
        {"sep_token": {"__type": "AddedToken", **token(rstrip=True)}},
    ),
    "a-name-of-its-own": ("tokenizer_config.json", {"image_token": NEW}),
    "special_tokens_map.json": ("special_tokens_map.json", {"sep_token": NEW}),
    "special_tokens_map.json-flags": ("special_tokens_map.json", {"sep_token": token(lstrip=True)}),
    "special_tokens_map.json-list": (
        "special_tokens_map.json",
        {"additional_special_tokens": [NEW]},
    ),
}


def numbered(content: Any, number: int) -> Any:
    return json.loads(
        json.dumps(content).replace('"N":', f'"{number}":').replace('"N"', str(number))
    )


@pytest.mark.parametrize("base", ["llama", "qwen3", "mistral", "bert"])
@pytest.mark.parametrize("place", DECLARED)
def test_a_declared_token_is_one_of_the_bundle_as_it_is_in_transformers(
    copy: Callable[[str], Path], base: str, place: str
) -> None:
    folder = copy(base)
    number = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    name, content = DECLARED[place]
    write(folder, name, numbered(content, number))
    checkpoint = load_checkpoint(folder)
    ours = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
    ours.no_padding()
    ours.no_truncation()
    theirs = AutoTokenizer.from_pretrained(folder)
    assert ours.token_to_id(NEW) == number
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert compare_tokens(checkpoint, TEXTS) is None


def test_without_such_tokens_the_bytes_are_those_of_the_file(copy: Callable[[str], Path]) -> None:
    folder = copy("llama")
    ours = load_checkpoint(folder).tokenizer_json
    assert ours == (folder / "tokenizer.json").read_bytes()


def test_the_digest_of_a_checkpoint_counts_what_companions_declare(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("llama")
    before = load_checkpoint(folder).digest()
    write(folder, "added_tokens.json", {NEW: 384})
    assert load_checkpoint(folder).digest() != before


REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "id-taken": ("llama", "added_tokens.json", {NEW: 7}, "'<new>' as token 7"),
    "id-of-the-decoder": (
        "llama",
        "tokenizer_config.json",
        {"added_tokens_decoder": {"500": token()}},
        "'<new>' as token 500",
    ),
    "decoder-a-list": ("llama", "tokenizer_config.json", {"added_tokens_decoder": []}, "decoder"),
    "token-a-number": ("llama", "tokenizer_config.json", {"sep_token": 3}, "sep_token"),
    "token-of-unknown-flags": (
        "llama",
        "tokenizer_config.json",
        {"sep_token": token(fuzzy=True)},
        "fuzzy",
    ),
    "map-of-other-keys": ("llama", "special_tokens_map.json", {"wibble": 1}, '["wibble"]'),
    "truncation-left": (
        "llama", "tokenizer_config.json", {"truncation_side": "left"}, "truncation_side",
    ),
    "lower-case": ("bert", "tokenizer_config.json", {"do_lower_case": False}, "do_lower_case"),
    "lower-case-of-bytes": (
        "llama", "tokenizer_config.json", {"do_lower_case": True}, "do_lower_case",
    ),
    "accents": ("bert", "tokenizer_config.json", {"strip_accents": False}, "strip_accents"),
    "chinese": (
        "bert",
        "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False},
        "tokenize_chinese_chars",
    ),
    "prefix-space": (
        "llama", "tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space",
    ),
    "no-prefix-space": (
        "mistral", "tokenizer_config.json", {"add_prefix_space": False}, "add_prefix_space",
    ),
    "no-bos": ("llama", "tokenizer_config.json", {"add_bos_token": False}, "add_bos_token"),
    "eos": ("llama", "tokenizer_config.json", {"add_eos_token": True}, "add_eos_token"),
    "split": (
        "llama", "tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens",
    ),
    "no-mask": (
        "llama", "tokenizer_config.json", {"model_input_names": ["input_ids"]}, "model_input_names",
    ),
    "other-file": (
        "llama", "tokenizer_config.json", {"fast_tokenizer_files": ["x"]}, "fast_tokenizer_files",
    ),
    "unknown": ("llama", "tokenizer_config.json", {"b": 1, "a": 2}, 'unknown keys ["a", "b"]'),
    "json-truncation-left": (
        "llama",
        "tokenizer.json",
        {"truncation": {
            "direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0,
        }},
        "truncation.direction",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_tokenizer_json_does_not_do_is_refused_by_key(
    copy: Callable[[str], Path], case: str
) -> None:
    base, name, content, message = REFUSED[case]
    folder = copy(base)
    write(folder, name, content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_cased_tokenizer_of_bert_whose_class_lowers_letters_is_refused(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("bert")
    normalizer = json.loads((folder / "tokenizer.json").read_bytes())["normalizer"]
    write(folder, "tokenizer.json", {"normalizer": {**normalizer, "lowercase": False}})
    load_checkpoint(folder)  # PreTrainedTokenizerFast takes tokenizer.json as it is
    write(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    with pytest.raises(CheckpointError, match=r"do_lower_case is true.*default of BertTokenizer"):
        load_checkpoint(folder)
    write(folder, "tokenizer_config.json", {"do_lower_case": False})
    assert compare_tokens(load_checkpoint(folder), ["Hello", "Où"]) is None


_SAVED = {
    "clean_up_tokenization_spaces": False, "model_max_length": 10**30, "chat_template": "{{ x }}",
}  # fmt: skip
# tokenizer_config.json as published checkpoints have it, beside the added tokens.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5": ("qwen2", {
        **_SAVED, "add_bos_token": False, "add_prefix_space": False, "bos_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "errors": "replace",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }),
    "llama-3": ("llama", {
        **_SAVED, "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }),
    "smollm2": ("llama", {
        **_SAVED, "add_prefix_space": False, "tokenizer_class": "GPT2Tokenizer",
        "vocab_size": 49152,
    }),
    "mistral": ("mistral", {
        **_SAVED, "add_bos_token": True, "add_eos_token": False, "additional_special_tokens": [],
        "legacy": False, "pad_token": None, "sp_model_kwargs": {}, "padding_side": "left",
        "spaces_between_special_tokens": False, "use_default_system_prompt": False,
        "bos_token": {"__type": "AddedToken", **token("<s>", normalized=True)},
    }),
    "bge": ("bert", {
        **_SAVED, "do_basic_tokenize": True, "do_lower_case": True, "never_split": None,
        "strip_accents": None, "tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer",
    }),
    "sentence-transformers": ("bert", {
        **_SAVED, "do_lower_case": True, "max_length": 128, "pad_to_multiple_of": None,
        "pad_token_type_id": 0, "padding_side": "right", "stride": 0, "truncation_side": "right",
        "truncation_strategy": "longest_first", "extra_special_tokens": {},
    }),
    "transformers-5": ("llama", {
        **_SAVED, "backend": "tokenizers", "is_local": True, "local_files_only": False,
        "tokenizer_class": "TokenizersBackend", "extra_special_tokens": [],
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("listed", [False, True])
def test_a_published_tokenizer_is_taken_as_its_tokenizer_json(
    copy: Callable[[str], Path], name: str, listed: bool
) -> None:
    base, settings = PUBLISHED[name]
    folder = copy(base)
    if listed:
        added = json.loads((folder / "tokenizer.json").read_bytes())["added_tokens"]
        decoder = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added}
        settings = {**settings, "added_tokens_decoder": decoder}
    write(folder, "tokenizer_config.json", settings)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.tokenizer_json == (folder / "tokenizer.json").read_bytes()
    assert compare_tokens(checkpoint, ["Hello", " ", "Où est-ce?"]) is None
