"""Backbone checkpoints: every published form is read, nothing is executed, damage is named."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from transformers import BertConfig, BertModel

from mutations import LFS_POINTER
from siren_export.sources.checkpoint import Checkpoint, load_checkpoint
from siren_runtime.errors import CheckpointError

EMBEDDING = np.random.default_rng(0).standard_normal((32, 4), np.float32)
NORM = np.linspace(0.5, 1.5, 4, dtype=np.float32)
TOKENIZER = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).to_str()
CONFIG = {"model_type": "qwen3", "hidden_size": 4}
DROPPING = Tokenizer(BPE({"a": 0}, [], dropout=0.5)).to_str()
INDEX_FILE = "model.safetensors.index.json"


def write(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    """A checkpoint in one weights file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "tokenizer.json").write_text(TOKENIZER)
    if tensors is None:
        tensors = {"model.embed_tokens.weight": EMBEDDING, "model.norm.weight": NORM}
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_shards(folder: Path) -> Path:
    """A checkpoint in two shards with an index."""
    write(folder)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, (name, values) in enumerate({"embed": EMBEDDING, "norm": NORM}.items(), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({f"model.{name}.weight": values}, folder / shard)
        weight_map[f"model.{name}.weight"] = shard
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return folder


def test_a_single_file_checkpoint_is_read(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write(tmp_path))
    assert (checkpoint.path, checkpoint.source) == (tmp_path, str(tmp_path))
    assert checkpoint.revision is None
    assert checkpoint.config == CONFIG
    assert checkpoint.tokenizer_json == TOKENIZER.encode()
    assert set(checkpoint.weights.tensors) == {"embed_tokens.weight", "norm.weight"}
    np.testing.assert_array_equal(checkpoint.weights.read("embed_tokens.weight"), EMBEDDING)
    np.testing.assert_array_equal(
        checkpoint.weights.read("embed_tokens.weight", slice(3, 9)), EMBEDDING[3:9]
    )


def test_a_sharded_checkpoint_is_read_as_one(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_shards(tmp_path))
    assert set(checkpoint.weights.tensors) == {"embed.weight", "norm.weight"}
    np.testing.assert_array_equal(checkpoint.weights.read("embed.weight"), EMBEDDING)
    np.testing.assert_array_equal(checkpoint.weights.read("norm.weight"), NORM)


@pytest.mark.parametrize("prefix", ["", "model.", "bert."])
def test_the_base_models_prefix_is_dropped_once(prefix: str, tmp_path: Path) -> None:
    names = ["layers.0.weight", "model.inner.weight", "modeling.weight"]
    tensors = {f"{prefix}{name}": NORM for name in names} if prefix else {"layers.0.weight": NORM}
    write(tmp_path, {**tensors, "lm_head.weight": EMBEDDING})
    expected = names if prefix else names[:1]
    assert set(load_checkpoint(tmp_path).weights.tensors) == {*expected, "lm_head.weight"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_keep_their_stored_dtype(dtype: Any, tmp_path: Path) -> None:
    values = EMBEDDING.astype(dtype)
    checkpoint = load_checkpoint(write(tmp_path, {"model.embed.weight": values}))
    assert checkpoint.weights.tensors["embed.weight"].dtype == dtype
    read = checkpoint.weights.read("embed.weight")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, values)


def test_norms_of_old_bert_checkpoints_have_todays_names(tmp_path: Path) -> None:
    model = BertModel(
        BertConfig(
            vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=4, max_position_embeddings=8,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    today = set(model.state_dict())
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): values.numpy()
        for name, values in model.state_dict().items()
    }
    save_file(old, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    tokenizer_class = {"tokenizer_class": "PreTrainedTokenizerFast"}  # BERT's own lowers letters
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_class))
    checkpoint = load_checkpoint(tmp_path)
    assert set(checkpoint.weights.tensors) == today
    name = "embeddings.LayerNorm.weight"
    assert checkpoint.weights.tensors[name].name == "bert.embeddings.LayerNorm.gamma"
    np.testing.assert_array_equal(checkpoint.weights.read(name), model.state_dict()[name].numpy())


def test_integer_buffers_are_tolerated_but_not_read_as_weights(tmp_path: Path) -> None:
    positions = np.arange(4)[None]
    write(tmp_path, {"bert.embeddings.position_ids": positions, "bert.norm.weight": NORM})
    checkpoint = load_checkpoint(tmp_path)
    assert "embeddings.position_ids" in checkpoint.weights.tensors
    with pytest.raises(CheckpointError, match=r"'bert.embeddings.position_ids' is int64"):
        checkpoint.weights.read("embeddings.position_ids")


def test_a_single_file_wins_over_an_index_as_in_transformers(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_file({"model.embed.weight": EMBEDDING + 1}, tmp_path / "model.safetensors")
    read = load_checkpoint(tmp_path).weights.read("embed.weight")
    np.testing.assert_array_equal(read, EMBEDDING + 1)


def test_code_that_the_config_names_is_never_run(tmp_path: Path) -> None:
    write(tmp_path, auto_map={"AutoModelForCausalLM": "modeling_evil.Model"})
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(CheckpointError, match=r"config\.json: auto_map.*--trust-remote-code"):
        load_checkpoint(tmp_path)
    checkpoint = load_checkpoint(tmp_path, trust_remote_code=True)
    assert "auto_map" in (checkpoint.remote_code or "")
    assert checkpoint.weights.read("norm.weight").shape == (4,)
    assert not any("modeling_evil" in name for name in sys.modules)


def test_code_of_a_tokenizer_is_refused_by_its_file(tmp_path: Path) -> None:
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_evil.T", None]}}
    (write(tmp_path) / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: auto_map"):
        load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path, trust_remote_code=True).remote_code is not None


_LOAD = """
import sys
from siren_export.sources.checkpoint import load_checkpoint
load_checkpoint(sys.argv[1]).weights.read("norm.weight")
print(sorted({"torch", "transformers", "pickle"} & set(sys.modules)))
"""


def test_reading_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LOAD, str(write(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "torch" not in done.stdout
    assert "transformers" not in done.stdout


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(
    value: float, dtype: Any, tmp_path: Path
) -> None:
    weights = np.zeros((600, 500), dtype)  # more than one block of the check
    weights[599, 499] = value
    checkpoint = load_checkpoint(write(tmp_path, {"model.layers.5.weight": weights}))
    assert checkpoint.weights.read("layers.5.weight", slice(0, 599)).shape == (599, 500)
    for rows in (None, slice(599, 600)):
        with pytest.raises(CheckpointError, match=r"'model.layers.5.weight' holds NaN or inf"):
            checkpoint.weights.read("layers.5.weight", rows)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tensor 'layers.0.mlp.weight'"):
        load_checkpoint(write(tmp_path)).weights.read("layers.0.mlp.weight")


Damage = Callable[[Path], object]


def put(name: str, content: bytes | str) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def drop(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def config(**values: Any) -> Damage:
    return put("config.json", json.dumps({**CONFIG, **values}))


def tensors(**values: Any) -> Damage:
    """Other weights; the names are given as model__norm_weight."""
    named = {key.replace("__", ".").replace("_", "."): v for key, v in values.items()}
    return lambda folder: save_file(named, folder / "model.safetensors")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")


def truncate(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-3])


# name -> damage to a whole checkpoint, what the message must hold
DAMAGED: dict[str, tuple[Damage, str]] = {
    "no-config": (drop("config.json"), "config.json: there is no such file"),
    "config-empty": (put("config.json", ""), "config.json"),
    "config-a-list": (put("config.json", "[1]"), "config.json: Expected `object`"),
    "config-cut": (put("config.json", '{"model_type": "qwen3"'), "config.json"),
    "config-not-utf8": (put("config.json", b'{"model_type": "\xff"}'), "config.json"),
    "config-deep": (
        put("config.json", b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        "config.json: the JSON nests too deeply",
    ),
    "config-huge": (put("config.json", b" " * (17 << 20)), "config.json: 17,825,792 bytes"),
    "no-model-type": (put("config.json", "{}"), "model_type is None"),
    "model-type-a-number": (config(model_type=3), "model_type is 3"),
    "quantized-gptq": (config(quantization_config={"quant_method": "gptq"}), "'gptq'"),
    "quantized-unnamed": (config(quantization_config=True), "quantization_config"),
    "no-tokenizer": (drop("tokenizer.json"), "AutoTokenizer"),
    "tokenizer-empty": (put("tokenizer.json", ""), "tokenizer.json: not a tokenizer"),
    "tokenizer-not-json": (put("tokenizer.json", "vocab"), "tokenizer.json: not a tokenizer"),
    "tokenizer-not-utf8": (put("tokenizer.json", b"\xff\xfe{}"), "tokenizer.json: not a tokenizer"),
    "tokenizer-of-no-model": (put("tokenizer.json", "{}"), "tokenizer.json: not a tokenizer"),
    "tokenizer-with-dropout": (
        put("tokenizer.json", DROPPING),
        "tokenizer.json: model.dropout is 0.5",
    ),
    "adapter": (put("adapter_config.json", "{}"), "adapter_config.json: an adapter"),
    "lfs-config": (put("config.json", LFS_POINTER), "config.json: holds a pointer of git LFS"),
    "lfs-tokenizer": (put("tokenizer.json", LFS_POINTER), "tokenizer.json: holds a pointer of"),
    "lfs-companion": (
        put("tokenizer_config.json", LFS_POINTER),
        "tokenizer_config.json: holds a pointer of git LFS",
    ),
    "lfs-weights": (put("model.safetensors", LFS_POINTER), "run `git lfs pull`"),
    "tokenizer-of-unknown-model": (
        put("tokenizer.json", TOKENIZER.replace("WordLevel", "Oracle")),
        "tokenizer.json: not a tokenizer",
    ),
    "tokenizer-that-panics": (
        put(
            "tokenizer.json",
            TOKENIZER.replace(
                '"normalizer":null',
                '"normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"}',
            ),
        ),
        "tokenizer.json: not a tokenizer",
    ),
    "tokenizer-deep": (
        put("tokenizer.json", '{"model":' * 50_000 + "1" + "}" * 50_000),
        "tokenizer.json: not a tokenizer",
    ),
    "no-weights": (drop("model.safetensors"), "neither model.safetensors nor model.safetensors"),
    "only-pickle": (pickled, "pickled (pytorch_model.bin)"),
    "weights-empty": (put("model.safetensors", b""), "model.safetensors: not a valid"),
    "weights-truncated": (truncate("model.safetensors"), "model.safetensors: not a valid"),
    "weights-a-pickle": (put("model.safetensors", b"\x80\x04." * 9), "model.safetensors: not a"),
    "both-prefixed-and-bare": (
        tensors(model__norm_weight=NORM, norm_weight=NORM),
        "'model.norm.weight'",
    ),
    "both-prefixes": (
        tensors(model__norm_weight=NORM, bert__norm_weight=NORM),
        "'bert.norm.weight'",
    ),
    "both-old-and-new-norm": (
        tensors(LayerNorm__weight=NORM, LayerNorm__gamma=NORM),
        "'LayerNorm.gamma'",
    ),
    "int8-weights": (
        tensors(model__norm_weight=np.ones(4, np.int8)),
        "'model.norm.weight' is int8",
    ),
    "float64-weights": (
        tensors(model__norm_weight=np.ones(4)),
        "'model.norm.weight' is float64",
    ),
    "float8-weights": (
        lambda folder: put("model.safetensors", _float8())(folder),
        "'model.norm.weight' is float8_e4m3fn",
    ),
}  # fmt: skip


def _float8() -> bytes:
    header = b'{"model.norm.weight":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    return len(header).to_bytes(8, "little") + header + b"\x38" * 4


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_checkpoint_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    inflict, culprit = DAMAGED[damage]
    write(tmp_path)
    inflict(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert culprit in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def index(**weight_map: Any) -> Damage:
    named = {f"model.{name}.weight": shard for name, shard in weight_map.items()}
    return put(INDEX_FILE, json.dumps({"weight_map": named}))


SHARD = "model-00001-of-00002.safetensors"
# name -> damage to a sharded checkpoint, what the message must hold
DAMAGED_SHARDS: dict[str, tuple[Damage, str]] = {
    "index-cut": (truncate(INDEX_FILE), INDEX_FILE),
    "index-without-map": (put(INDEX_FILE, '{"metadata": {}}'), "weight_map"),
    "map-a-list": (put(INDEX_FILE, '{"weight_map": []}'), "$.weight_map"),
    "shard-a-number": (index(embed=1), "$.weight_map"),
    "shard-missing": (index(embed="model-3.safetensors"), "model-3.safetensors: there is no such"),
    "shard-above": (index(embed=f"../{SHARD}"), f"'../{SHARD}'"),
    "shard-absolute": (index(embed="/etc/passwd.safetensors"), "'/etc/passwd.safetensors'"),
    "shard-below": (index(embed="deeper/a.safetensors"), "'deeper/a.safetensors'"),
    "shard-through-the-folder": (index(embed=f"x/../{SHARD}"), f"'x/../{SHARD}'"),
    "shard-with-backslash": (index(embed="..\\a.safetensors"), "a.safetensors'"),
    "shard-with-nul": (index(embed="a\0.safetensors"), "'a\\x00.safetensors'"),
    "shard-with-long-name": (index(embed="a" * 5000 + ".safetensors"), "aaa.safetensors"),
    "shard-empty-name": (index(embed=""), "''"),
    "shard-dots": (index(embed=".."), "'..'"),
    "shard-a-pickle": (index(embed="pytorch_model.bin"), "'pytorch_model.bin'"),
    "tensor-in-another-shard": (index(norm=SHARD), "'model.norm.weight'"),
    "tensor-in-no-shard": (index(other=SHARD), "'model.other.weight'"),
    "shard-truncated": (truncate(SHARD), f"{SHARD}: not a valid safetensors file"),
    "shard-lfs": (put(SHARD, LFS_POINTER), f"{SHARD}: holds a pointer of git LFS"),
    "shard-gone": (drop(SHARD), f"{SHARD}: there is no such file"),
}


@pytest.mark.parametrize("damage", DAMAGED_SHARDS)
def test_a_damaged_sharded_checkpoint_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    inflict, culprit = DAMAGED_SHARDS[damage]
    write_shards(tmp_path / "checkpoint")
    save_file({"model.embed.weight": EMBEDDING}, tmp_path / SHARD)  # outside the checkpoint
    inflict(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "checkpoint")
    assert culprit in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def load_or_refusal(folder: Path) -> Checkpoint | str:
    """The checkpoint, or our error's message; any other failure is the test's."""
    try:
        return load_checkpoint(folder)
    except CheckpointError as error:
        return str(error)


@given(
    st.sampled_from(["config.json", "tokenizer.json", INDEX_FILE, SHARD]),
    st.binary(max_size=60),
    st.integers(0, 400),
    st.integers(0, 20),
)
@settings(max_examples=200, deadline=None)
def test_a_file_with_random_bytes_loads_or_gives_our_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, noise: bytes, start: int, length: int
) -> None:
    folder = write_shards(tmp_path_factory.getbasetemp() / "random-bytes")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:start] + noise + data[start + length :])
    loaded = load_or_refusal(folder)
    if isinstance(loaded, str):
        assert str(folder) in loaded
    else:
        assert set(loaded.weights.tensors) <= {"embed.weight", "norm.weight"}


@given(st.text(max_size=12) | st.just("").map(lambda _: SHARD), st.text(max_size=12))
@settings(max_examples=100, deadline=None)
def test_an_index_with_random_names_loads_or_gives_our_error(
    tmp_path_factory: pytest.TempPathFactory, tensor: str, shard: str
) -> None:
    folder = write_shards(tmp_path_factory.getbasetemp() / "random-names")
    for name in (shard, f"{shard}.safetensors"):
        (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {tensor: name}}))
        assert isinstance(load_or_refusal(folder), str)
