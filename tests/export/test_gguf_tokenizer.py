"""A header's tokenizer makes the tokens that transformers makes of it, and the model's own ones."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from backbones import BACKBONES
from gguf_files import write_gguf
from models import make_backbone
from siren_export.sources.checkpoint import Checkpoint, load_checkpoint
from siren_export.verify.gguf_reference import read_tokenizer
from siren_export.verify.texts import TEXTS, added_tokens, own_texts
from siren_export.verify.tokens import compare_tokens
from siren_runtime.errors import CheckpointError
from texts import TEXTS as RAGGED

Folders = Callable[[str], Path]
SPACES = [" two", "  three", "a  b", "1 2  3\n\n4", "\n\n1. one\n 2. two", "x\t\ty", " ", "½ ① ९"]
ALL_TEXTS = [
    text
    for text in (*TEXTS, *(text[:2000] for text in RAGGED), *SPACES)
    # transformers gives a file without this token one with an id beyond its vocabulary. Cleaning
    # takes it out of every text.
    if "<|endoftext|>" not in text
]
BYTE_LEVEL = (
    ("llama", "gpt-2"), ("llama", "smollm"), ("llama", "llama-bpe"), ("llama", "tekken"),
    ("qwen2", "qwen2"), ("qwen3", "qwen2"),
)  # fmt: skip


def ours(checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer.from_str(checkpoint.tokenizer_json.decode("utf-8"))


def check_equal(checkpoint: Checkpoint) -> None:
    """Tokens of the texts, cleaned or not, are those of transformers' reading of the file."""
    theirs = read_tokenizer(checkpoint).made
    tokenizer = ours(checkpoint)
    for text in [*ALL_TEXTS, *own_texts(added_tokens(checkpoint), 48)]:
        assert tokenizer.encode(text).ids == theirs(text)["input_ids"], text
    assert compare_tokens(checkpoint, ALL_TEXTS) is None


@pytest.mark.parametrize(("name", "pre"), BYTE_LEVEL)
def test_byte_level_tokens_are_those_of_transformers(
    name: str, pre: str, backbone_folder: Folders, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(write_gguf(tmp_path / "m.gguf", backbone_folder(name), pre=pre))
    check_equal(checkpoint)
    if pre in ("gpt-2", "qwen2"):
        assert read_tokenizer(checkpoint).ours == ()


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokens_are_those_of_transformers(
    prefix: bool, backbone_folder: Folders, tmp_path: Path
) -> None:
    values = {"tokenizer.ggml.add_space_prefix": prefix}
    path = write_gguf(tmp_path / "m.gguf", backbone_folder("mistral"), values=values)
    checkpoint = load_checkpoint(path)
    check_equal(checkpoint)
    # transformers puts a space in front whatever the header says.
    assert read_tokenizer(checkpoint).ours == (() if prefix else ("pre-tokenizer",))
    first = ours(checkpoint).encode("ZZ", add_special_tokens=False).tokens[0]
    assert first.startswith("\u2581") == prefix


@pytest.mark.parametrize(("begins", "ends"), [(True, True), (False, False), (False, True)])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_text_begins_and_ends_as_the_header_says(
    name: str, begins: bool, ends: bool, backbone_folder: Folders, tmp_path: Path
) -> None:
    flags = {"tokenizer.ggml.add_bos_token": begins, "tokenizer.ggml.add_eos_token": ends}
    path = write_gguf(tmp_path / "m.gguf", backbone_folder(name), values=flags)
    checkpoint = load_checkpoint(path)
    check_equal(checkpoint)
    config = checkpoint.config
    ids = ours(checkpoint).encode("bread").ids
    assert (ids[0] == config["bos_token_id"], ids[-1] == config["eos_token_id"]) == (begins, ends)


def test_llama_3_and_sentencepiece_begin_a_text_where_the_header_does_not_say(
    backbone_folder: Folders, tmp_path: Path
) -> None:
    """As llama.cpp does. transformers does so for SentencePiece alone, so it is told."""
    silent = {"tokenizer.ggml.add_bos_token": None}
    for name, pre, begins in (
        ("llama", "llama-bpe", True),
        ("llama", "gpt-2", False),
        ("mistral", "", True),
    ):
        path = tmp_path / f"{name}{pre}.gguf"
        write_gguf(path, backbone_folder(name), pre=pre, values=silent)
        checkpoint = load_checkpoint(path)
        check_equal(checkpoint)
        first = ours(checkpoint).encode("bread").ids[0]
        assert (first == checkpoint.config["bos_token_id"]) == begins


NEW = 384  # the first id that no token has in a backbone of `roomy`


def roomy(name: str, tmp_path: Path) -> Path:
    """A backbone with more rows than its tokenizer has tokens."""
    spec = replace(BACKBONES[name], config={"vocab_size": NEW + 16})
    return make_backbone(tmp_path / "roomy", spec)


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_smollm_splits_digits_as_its_published_tokenizer_does(tmp_path: Path) -> None:
    """transformers takes the name for GPT-2's: a line break before a digit becomes other tokens.

    The published tokenizer.json of SmolLM2 has Digits(individual_digits=True) before ByteLevel,
    and so has llama.cpp.
    """
    folder = roomy("llama", tmp_path)
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = split
    tokenizer.save(str(folder / "tokenizer.json"))

    def with_a_line_break(data: dict[str, Any]) -> None:
        data["model"]["vocab"] |= {"ĊĊ": NEW}
        data["model"]["merges"].insert(0, ["Ċ", "Ċ"])

    change_tokenizer(folder, with_a_line_break)
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    path = write_gguf(tmp_path / "model.gguf", folder, pre="smollm")
    checkpoint = load_checkpoint(path)
    for text in ALL_TEXTS:
        assert ours(checkpoint).encode(text).ids == original.encode(text).ids
    text = "Steps:\n\n1. bread"
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert "ĊĊ" in original.encode(text).tokens
    assert "ĊĊ" not in theirs.tokenize(text)
    assert read_tokenizer(checkpoint).ours == ("pre-tokenizer",)


def test_llama_3_takes_a_word_that_is_a_token_whole(tmp_path: Path) -> None:
    """Its published tokenizer.json has `ignore_merges`; transformers reads a file without."""
    folder = roomy("llama", tmp_path)

    def whole(data: dict[str, Any]) -> None:
        data["model"]["vocab"] |= {"Ġzqz": NEW}  # of no merge
        data["model"]["ignore_merges"] = True

    change_tokenizer(folder, whole)
    checkpoint = load_checkpoint(write_gguf(tmp_path / "model.gguf", folder, pre="llama-bpe"))
    assert "Ġzqz" in ours(checkpoint).encode("a zqz").tokens
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert "Ġzqz" not in theirs.tokenize("a zqz")
    assert read_tokenizer(checkpoint).ours == ("ignore_merges",)
    check_equal(checkpoint)


def test_user_defined_tokens_are_found_whole_and_are_not_special(tmp_path: Path) -> None:
    folder = roomy("qwen2", tmp_path)

    def think(data: dict[str, Any]) -> None:
        token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        data["added_tokens"].append({"id": NEW, "content": "<think>", **token})

    change_tokenizer(folder, think)
    checkpoint = load_checkpoint(write_gguf(tmp_path / "model.gguf", folder, pre="qwen2"))
    assert "<think>" in ours(checkpoint).encode("so<think>so").tokens
    check_equal(checkpoint)


def test_a_tokenizer_beside_the_file_is_taken(backbone_folder: Folders, tmp_path: Path) -> None:
    folder = backbone_folder("qwen2")
    values = {"tokenizer.ggml.pre": "a name of tomorrow"}
    path = write_gguf(tmp_path / "model.gguf", folder, values=values)
    with pytest.raises(CheckpointError, match=r"'a name of tomorrow'.*Put the model's own"):
        load_checkpoint(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.gguf_tokenizer is None
    original = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in ALL_TEXTS:
        assert ours(checkpoint).encode(text).ids == original(text)["input_ids"]
    assert compare_tokens(checkpoint, ALL_TEXTS) is None


def test_code_of_a_tokenizer_beside_the_file_is_refused(
    backbone_folder: Folders, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", backbone_folder("qwen2"), pre="qwen2")
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_own.T", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    load_checkpoint(path)  # of whose header the tokenizer is made
    shutil.copy(backbone_folder("qwen2") / "tokenizer.json", tmp_path)
    for trust in (False, True):
        with pytest.raises(CheckpointError, match=r"_config\.json: auto_map .*nothing runs"):
            load_checkpoint(path, trust_remote_code=trust)


def test_the_tokenizer_of_another_model_is_refused(
    backbone_folder: Folders, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", backbone_folder("llama"))
    shutil.copy(backbone_folder("mistral") / "tokenizer.json", tmp_path)
    with pytest.raises(CheckpointError, match="tokenizer of another model"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma2"])
def test_a_headers_own_tokenizer_is_taken_beside_it(
    name: str, backbone_folder: Folders, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", backbone_folder(name), pre="qwen2")
    made = load_checkpoint(path).tokenizer_json
    (tmp_path / "tokenizer.json").write_bytes(made)
    beside = load_checkpoint(path)
    assert (beside.tokenizer_json, beside.gguf_tokenizer) == (made, None)


def _swapped(data: dict[str, Any]) -> None:
    """Let two control tokens stand at each other's place."""
    one, two = data["added_tokens"][:2]
    one["id"], two["id"] = two["id"], one["id"]
    data["added_tokens"].sort(key=lambda token: token["id"])
    vocabulary = data["model"]["vocab"] | {t["content"]: t["id"] for t in (one, two)}
    data["model"]["vocab"] = vocabulary
    for token in data["post_processor"]["special_tokens"].values():
        token["ids"] = [one["id"]]


def _renamed(data: dict[str, Any]) -> None:
    """Let a reserved token be called as a fine-tuned model's is."""
    (token,) = [t for t in data["added_tokens"] if t["content"] == "<|reserved_token_0|>"]
    data["model"]["vocab"]["<|im_start|>"] = data["model"]["vocab"].pop(token["content"])
    token["content"] = "<|im_start|>"


def _not_added(data: dict[str, Any]) -> None:
    """Let merges alone make a control token, which they do not."""
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "<|eot_id|>"]


def _begins_with_nothing(data: dict[str, Any]) -> None:
    data["post_processor"] = None


def _ends_with_eos(data: dict[str, Any]) -> None:
    name, index = "<|end_of_text|>", data["model"]["vocab"]["<|end_of_text|>"]
    ends = data["post_processor"]
    ends["single"].append({"SpecialToken": {"id": name, "type_id": 0}})
    ends["special_tokens"][name] = {"id": name, "ids": [index], "tokens": [name]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_swapped, "token 0 is '<|end_of_text|>', and '<|begin_of_text|>' in model.gguf"),
        (_swapped, "here that one is token 1; it is the tokenizer of another model"),
        (_renamed, "token 3 is '<|im_start|>', and '<|reserved_token_0|>' in model.gguf"),
        (_renamed, "here that one is none"),
        (_not_added, "here that one is token 2, but no added token"),
        (_begins_with_nothing, "puts nothing before every text"),
        (_begins_with_nothing, "model.gguf beside it '<|begin_of_text|>' (0)"),
        (_ends_with_eos, "puts '<|end_of_text|>' (1) after every text"),
    ],
)
def test_other_tokens_that_no_merge_makes_are_refused_beside_a_header(
    change: Callable[[dict[str, Any]], None],
    words: str,
    backbone_folder: Folders,
    tmp_path: Path,
) -> None:
    path = write_gguf(tmp_path / "model.gguf", backbone_folder("llama"))
    shutil.copy(backbone_folder("llama") / "tokenizer.json", tmp_path)
    load_checkpoint(path)
    change_tokenizer(tmp_path, change)
    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(path)
    assert words in str(refusal.value)


def test_what_no_name_tells_of_a_header_is_not_compared(tmp_path: Path) -> None:
    """Rows of no token, which older converters call user-defined ones; and where a text begins, in
    a header that neither says it nor has a pre-tokenizer that is known.
    """
    folder = roomy("llama", tmp_path)
    kinds = [3] * 4 + [1] * (NEW - 4) + [4] * 16
    values = {"token_type": kinds, "pre": "of tomorrow", "add_bos_token": None}
    values = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    path = write_gguf(tmp_path / "model.gguf", folder, values=values)
    shutil.copy(folder / "tokenizer.json", tmp_path)
    assert load_checkpoint(path).tokenizer_json == (folder / "tokenizer.json").read_bytes()


TOKENS = "tokenizer.ggml.tokens"
LIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "none": ("llama", {"tokenizer.ggml.model": None}, "no tokenizer.ggml.model"),
    "another kind": ("llama", {"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'"),
    "no split": ("llama", {"tokenizer.ggml.pre": None}, "no tokenizer.ggml.pre"),
    "default": ("llama", {"tokenizer.ggml.pre": "default"}, "pre is 'default'"),
    "lower case": ("llama", {"tokenizer.ggml.normalizer.lowercase": True}, "normalizer.lowercase"),
    "unknown": ("llama", {"tokenizer.ggml.charsmap_of_tomorrow": "x"}, "charsmap_of_tomorrow"),
    "prefix": ("llama", {"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix is True"),
    "spaces": ("mistral", {"tokenizer.ggml.remove_extra_whitespaces": True}, "extra_whitespaces"),
    "few kinds": ("llama", {"tokenizer.ggml.token_type": [1, 1]}, "expected 384 integers"),
    "a kind": ("llama", {"tokenizer.ggml.token_type": [9] * 384}, "token_type holds 9"),
    "kinds in words": (
        "llama",
        {"tokenizer.ggml.token_type": ["a"] * 384},
        "expected 384 integers",
    ),
    "few tokens": (
        "llama",
        {TOKENS: ["a", "b"], "tokenizer.ggml.token_type": [1, 1]},
        "makes no tokenizer",
    ),
    "twice": ("llama", {TOKENS: ["a"] * 384}, "holds 'a' as 0 and as 1"),
    "long": ("llama", {TOKENS: ["a" * 10_000] * 384}, "tokens[0] has 10,000 characters"),
    "no merges": ("llama", {"tokenizer.ggml.merges": None}, "no tokenizer.ggml.merges"),
    "three words": ("llama", {"tokenizer.ggml.merges": ["a b c"]}, "merges[0] is 'a b c'"),
    "one word": ("llama", {"tokenizer.ggml.merges": ["ab"]}, "merges[0] is 'ab'"),
    "of no tokens": ("llama", {"tokenizer.ggml.merges": ["qqqq zzzz"]}, "makes no tokenizer"),
    "an id": ("llama", {"tokenizer.ggml.bos_token_id": 384}, "bos_token_id is 384"),
    "no bos": ("llama", {"tokenizer.ggml.bos_token_id": None}, "no tokenizer.ggml.bos_token_id"),
    "flag": ("llama", {"tokenizer.ggml.add_bos_token": 1}, "add_bos_token is 1"),
    "no scores": ("mistral", {"tokenizer.ggml.scores": None}, "no tokenizer.ggml.scores"),
    "few scores": ("mistral", {"tokenizer.ggml.scores": [0.5]}, "expected 384 floats"),
    "no number": (
        "mistral",
        {"tokenizer.ggml.scores": [float("nan")] * 384},
        "expected finite numbers",
    ),
    "no bytes": (
        "mistral",
        {TOKENS: [f"t{n}" for n in range(384)]},
        "no <0x00>",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_vocabulary_that_is_not_one_is_refused(
    lie: str, backbone_folder: Folders, tmp_path: Path
) -> None:
    name, values, words = LIES[lie]
    path = write_gguf(tmp_path / "model.gguf", backbone_folder(name), values=values)
    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(path)
    assert words in str(refusal.value)
    assert len(str(refusal.value)) < 1000
