"""A header that lies is refused by an error of ours, at once and without much memory."""

import os
import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_files import write_gguf
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.sources.gguf_file import GgufFile
from siren_runtime.errors import CheckpointError, SirenError

COUNT = int(os.environ.get("SIREN_MUTATIONS", "200"))
HUGE = (2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    types = {"ffn": "Q4_0", "attn": "Q8_0"}
    return write_gguf(path, backbone_folder("llama"), types=types).read_bytes()


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def header(*keys: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, **counts: int) -> bytes:
    """A header of raw entries; `counts` are what it says of their numbers, where it lies."""
    told = (counts.get("tensors_told", len(tensors)), counts.get("keys_told", len(keys)))
    return b"GGUF" + struct.pack("<IQQ", version, *told) + b"".join((*keys, *tensors))


def key(name: str, kind: int, data: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + data


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


ARCHITECTURE = key("general.architecture", 8, text("llama"))
ZEROS = bytes(4096)
LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no GGUF file"),
    "another format": (b"PK\3\4" + ZEROS, "does not begin with 'GGUF'"),
    "version 1": (header(version=1), "version 1"),
    "version of tomorrow": (header(version=4) + ZEROS, "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + ZEROS, "big-endian"),
    "cut in the counts": (header()[:20], "cut short"),
    **{f"{n} keys": (header(keys_told=n), "number of keys") for n in HUGE},
    **{f"{n} tensors": (header(tensors_told=n), "number of tensors") for n in HUGE},
    "more keys than there are": (header(ARCHITECTURE, keys_told=9), "cut short"),
    **{
        f"key of {n} bytes": (header(struct.pack("<Q", n) + ZEROS), "sane header has at most")
        for n in HUGE
    },
    **{
        f"string of {n} bytes": (header(key("a", 8, struct.pack("<Q", n))), "a is a string of")
        for n in HUGE
    },
    **{
        f"array of {n} {kind}": (header(key("a", 9, struct.pack("<IQ", code, n))), "a ")
        for n in HUGE
        for kind, code in (("bytes", 0), ("doubles", 12), ("strings", 8), ("flags", 7))
    },
    "array of arrays": (header(key("a", 9, struct.pack("<IQ", 9, 1)) + ZEROS), "in an array"),
    "value of an unknown type": (header(key("a", 13, ZEROS)), "type 13"),
    "array of an unknown type": (header(key("a", 9, struct.pack("<IQ", 99, 1))), "type 99"),
    "flag of 2": (header(key("a", 7, b"\2")), "a is a flag of 2"),
    "flags of 2": (header(key("a", 9, struct.pack("<IQ", 7, 2) + b"\1\2")), "neither 0 nor 1"),
    "no UTF-8": (header(key("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")), "not UTF-8"),
    "a key twice": (header(ARCHITECTURE, ARCHITECTURE), "more than once"),
    "a tensor twice": (
        header(tensors=(tensor("t", (8,)), tensor("t", (8,), offset=32))) + ZEROS,
        "names tensor 't' twice",
    ),
    "no axes": (header(tensors=(tensor("t", ()),)) + ZEROS, "0 axes"),
    "five axes": (header(tensors=(tensor("t", (1,) * 5),)) + ZEROS, "5 axes"),
    "2^32 - 1 axes": (
        header(tensors=(text("t") + struct.pack("<I", 2**32 - 1),)) + ZEROS,
        "4294967295 axes",
    ),
    "an empty axis": (header(tensors=(tensor("t", (0,)),)) + ZEROS, "shape [0]"),
    "sizes that overflow": (
        header(tensors=(tensor("t", (2**32, 2**32)),)) + ZEROS,
        "cut short or damaged",
    ),
    **{
        f"rows of {n}": (header(tensors=(tensor("t", (32, n)),)) + ZEROS, "cut short or damaged")
        for n in HUGE
    },
    **{
        f"offset {n}": (
            header(tensors=(tensor("t", (8,), offset=n),)) + ZEROS,
            "not a multiple" if n % 32 else "cut short",
        )
        for n in HUGE
    },
    "an offset that is not aligned": (
        header(tensors=(tensor("t", (8,), offset=4),)) + ZEROS,
        "not a multiple of the alignment 32",
    ),
    "tensors that share bytes": (
        header(tensors=(tensor("a", (16,)), tensor("b", (16,), offset=32))) + ZEROS,
        "shares bytes with tensor 'a'",
    ),
    "an unknown type of tensor": (
        header(tensors=(tensor("t", (8,), kind=250),)) + ZEROS,
        "type 250",
    ),
    "a type that was taken back": (
        header(tensors=(tensor("t", (32,), kind=4),)) + ZEROS,
        "type 4",
    ),
    "rows of no whole blocks": (
        header(tensors=(tensor("t", (40, 2), kind=2),)) + ZEROS,
        "whole blocks of 32",
    ),
    **{
        f"alignment {n}": (
            header(key("general.alignment", 4, struct.pack("<I", n))) + ZEROS,
            "general.alignment is",
        )
        for n in (0, 3, 48, 2**32 - 1)
    },
    "alignment in words": (header(key("general.alignment", 8, text("32"))), "power of two"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    data, words = LIES[lie]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as refusal:
        GgufFile(path)
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_lies_cost_no_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, (data, _) in enumerate(LIES.values()):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            GgufFile(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def test_strings_of_gigabytes_are_not_read_where_the_file_holds_them(tmp_path: Path) -> None:
    """A sparse file may be as large as its header says."""
    path = tmp_path / "model.gguf"
    strings = header(key("a", 9, struct.pack("<IQ", 8, 3) + struct.pack("<Q", 3 << 30)))
    path.write_bytes(strings)
    os.truncate(path, 10 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="sane header"):
        GgufFile(path)
    numbers = header(key("a", 9, struct.pack("<IQ", 0, 9 << 30)))
    path.write_bytes(numbers)
    os.truncate(path, 10 << 30)
    with pytest.raises(CheckpointError, match="beyond"):
        GgufFile(path)
    many = header(*(key(str(n), 9, struct.pack("<IQ", 8, 1 << 20)) for n in range(1)), keys_told=3)
    path.write_bytes(many)
    os.truncate(path, 10 << 30)
    with pytest.raises(CheckpointError):
        GgufFile(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_refused(good: bytes, tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(good[: int(len(good) * share)])
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(good)
    weights = load_checkpoint(path).weights
    last = max(GgufFile(path).tensors.values(), key=lambda tensor: tensor.offset)
    path.write_bytes(good[: last.offset + 1])
    (name,) = (n for n in weights.tensors if weights.stored(n).name == last.name)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        weights.read(name)


def _flip(data: bytearray, rng: random.Random, end: int) -> None:
    """A few bytes of the header become others."""
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(end)] = rng.randrange(256)


def _overwrite(data: bytearray, rng: random.Random, end: int) -> None:
    """A number that is wide becomes a large one, or a small one."""
    value = rng.choice((*HUGE, 0, 1, 7))
    at = rng.randrange(end - 8)
    data[at : at + 8] = struct.pack("<Q", value)


def _drop(data: bytearray, rng: random.Random, end: int) -> None:
    at = rng.randrange(end)
    del data[at : at + rng.randint(1, 16)]


def _double(data: bytearray, rng: random.Random, end: int) -> None:
    at = rng.randrange(end)
    data[at:at] = data[at : at + rng.randint(1, 64)]


MUTATORS: tuple[Callable[[bytearray, random.Random, int], None], ...] = (
    _flip,
    _overwrite,
    _drop,
    _double,
)


def test_mutated_files_are_read_or_refused_by_an_error_of_ours(good: bytes, tmp_path: Path) -> None:
    """No other exception, no hang, little memory; what is read has the shape that it says."""
    path = tmp_path / "model.gguf"
    path.write_bytes(good)
    end = min(tensor.offset for tensor in GgufFile(path).tensors.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = 0
    for seed in range(COUNT):
        rng = random.Random(seed)
        data = bytearray(good)
        rng.choice(MUTATORS)(data, rng, end)
        path.write_bytes(data)
        refusal = None
        try:
            weights = load_checkpoint(path).weights
            for name, info in weights.tensors.items():
                assert weights.read(name).shape == info.shape
        except SirenError as error:
            refusal = str(error)
        read += refusal is None
        assert refusal is None or str(path) in refusal
    assert 0 < read < COUNT
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(
    value: float, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", backbone_folder("llama"), types={"ffn_up": "Q8_0"})
    stored = GgufFile(path).tensors["blk.1.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    data[stored.offset : stored.offset + 2] = np.float16(value).tobytes()  # a block's scale
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'blk\.1\.ffn_up\.weight' holds NaN or infinite"):
        load_checkpoint(path).weights.read("layers.1.mlp.up_proj.weight")


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "mamba"}, "general.architecture is 'mamba'"),
    "adapter": ({"general.type": "adapter"}, "general.type is 'adapter'"),
    "part": ({"split.count": 3}, "split.count is 3"),
    "old blocks": ({"general.quantization_version": 1}, "general.quantization_version is 1"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is 8; the model is a mixture of"),
    "experts of another architecture": (
        {"general.architecture": "qwen3moe", "qwen3moe.expert_count": 128},
        "qwen3moe.expert_count is 128; the model is a mixture of experts, which is not supported",
    ),
    "longrope": ({"llama.rope.scaling.type": "longrope"}, "rope.scaling.type is 'longrope'"),
    "attention factor": ({"llama.rope.scaling.attn_factor": 1.5}, "attn_factor is 1.5"),
    "part of a head": ({"llama.rope.dimension_count": 8}, "the whole head of 16 must rotate"),
    "wide values": ({"llama.attention.value_length": 32}, "attention.value_length is 32"),
    "both ways": ({"llama.attention.causal": False}, "llama.attention.causal is False"),
    "window": ({"llama.attention.sliding_window": 64}, "llama.attention.sliding_window"),
    "soft cap": ({"llama.attn_logit_softcapping": 50.0}, "llama.attn_logit_softcapping"),
    "multiplier": ({"llama.embedding_scale": 12.0}, "llama.embedding_scale"),
    "blocks of no kind": ({"llama.block_count": "four"}, "llama.block_count is 'four'"),
    "a block more": ({"llama.block_count": 5}, "tensors of 4 blocks, the last of them 3"),
    "a block less": ({"llama.block_count": 3}, "tensors of 4 blocks, the last of them 3"),
    "no blocks": ({"llama.block_count": 0}, "llama.block_count is 0"),
    "blocks by layer": ({"llama.attention.head_count_kv": [2, 2, 1, 2]}, "is an array of 4"),
    "no width": ({"llama.embedding_length": None}, "no llama.embedding_length"),
    "rows": ({"llama.vocab_size": 999}, "token_embd.weight has 384 rows"),
    "no heads": ({"llama.attention.head_count": 7}, "are no 7 heads"),
    "epsilon": ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "expected a number above 0"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, "has no llama.attention"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_the_graphs_do_not_have_is_refused_by_name(
    setting: str, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    values, words = SETTINGS[setting]
    path = write_gguf(tmp_path / "model.gguf", backbone_folder("llama"), values=values)
    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(path)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("llama", "blk.0.attn_sub_norm.weight"),
        ("llama", "blk.0.ffn_gate_inp.weight"),
        ("llama", "position_embd.weight"),
        ("llama", "blk.0.attn_norm.bias"),
        ("llama", "output_norm.bias"),
        ("llama", "token_embd.bias"),
        ("qwen2", "blk.0.attn_output.bias"),
        ("qwen2", "blk.0.ffn_down.bias"),
        ("qwen3", "blk.0.ffn_up.bias"),
    ],
)
def test_a_tensor_that_is_not_known_is_refused_by_name(
    backbone: str, name: str, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    extra = np.ones((64,), np.float32)
    path = write_gguf(
        tmp_path / "model.gguf",
        backbone_folder(backbone),
        pre="qwen2" if backbone.startswith("qwen") else "gpt-2",
        change=lambda writer: writer.add_tensor(name, extra),
    )
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("blk.1.attn_q.bias", "attention_bias"),
        ("blk.2.attn_output.bias", "attention_bias"),
        ("blk.3.ffn_down.bias", "mlp_bias"),
    ],
)
def test_a_bias_of_any_block_says_that_there_are_biases(
    name: str, flag: str, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Where the others are missing, the export says so: none is dropped."""
    path = write_gguf(
        tmp_path / "model.gguf",
        backbone_folder("llama"),
        change=lambda writer: writer.add_tensor(name, np.ones((64,), np.float32)),
    )
    assert load_checkpoint(path).config[flag] is True
