"""Safetensors files: read exactly, in pieces, without mapping; refused clearly when damaged."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save
from safetensors.torch import save_file

from siren_export.sources.safetensors_file import SafetensorsFile
from siren_runtime.errors import ArtifactError, CheckpointError

ERRORS = [ArtifactError, CheckpointError]  # of the two callers

TORCH_DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
    torch.int64: np.int64,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


def pack(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with any header, and any length said of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[Any], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def open_bytes(folder: Path, content: bytes) -> SafetensorsFile:
    path = folder / "weights.safetensors"
    path.write_bytes(content)
    return SafetensorsFile(path, ArtifactError)


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype_reads_as_torch_reads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    save_file({"before": torch.zeros(3), "t": values}, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors", ArtifactError)
    assert file.tensors["t"].dtype == TORCH_DTYPES[dtype]
    assert file.tensors["t"].shape == (7, 5)
    read = file.read("t")
    assert read.dtype == TORCH_DTYPES[dtype]
    np.testing.assert_array_equal(read.astype(np.float64), values.to(torch.float64).numpy())


def test_scale_factors_in_e8m0_read_as_powers_of_two(tmp_path: Path) -> None:
    content = pack({"t": entry([3], 0, 3, "F8_E8M0")}, bytes([126, 127, 130]))
    read = open_bytes(tmp_path, content).read("t").astype(np.float32)
    np.testing.assert_array_equal(read, [0.5, 1.0, 8.0])


@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3), (3, 1, 2, 2)], ids=str)
def test_shapes_of_any_rank_are_kept(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    read = open_bytes(tmp_path, save({"t": values})).read("t")
    np.testing.assert_array_equal(read, values)


@given(st.slices(9), st.sampled_from([np.float64, np.float16, ml_dtypes.bfloat16]))
@settings(max_examples=60, deadline=None)
def test_rows_are_those_of_a_numpy_slice(
    tmp_path_factory: pytest.TempPathFactory, rows: slice, dtype: Any
) -> None:
    values = np.arange(9 * 4).reshape(9, 2, 2).astype(dtype)
    file = open_bytes(tmp_path_factory.mktemp("rows"), save({"a": values[:2], "t": values}))
    if rows.step in (None, 1):
        np.testing.assert_array_equal(file.read("t", rows), values[rows])
    else:
        with pytest.raises(ValueError, match="slice"):
            file.read("t", rows)


def test_rows_of_a_scalar_are_refused(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, save({"t": np.array(1, np.float32)}))
    with pytest.raises(ValueError, match="shape"):
        file.read("t", slice(0, 1))


def test_what_was_read_is_the_callers_to_change(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, save({"t": np.ones(4, np.float32)}))
    file.read("t")[:] = 0
    np.testing.assert_array_equal(file.read("t"), 1)


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, save({"t": np.ones(4, np.float32)}, {"format": "pt"}))
    assert list(file.tensors) == ["t"]


_READ_ROWS = """
import sys
from pathlib import Path
from siren_export.sources.safetensors_file import SafetensorsFile
from siren_runtime.errors import ArtifactError

def resident_peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

before = resident_peak()
file = SafetensorsFile(Path(sys.argv[1]), ArtifactError)
rows = file.tensors["t"].shape[0]
for start in range(0, rows, 256):
    file.read("t", slice(start, start + 256))
print(resident_peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_reading_in_blocks_holds_one_block(tmp_path: Path) -> None:
    rows, columns = 4096, 16384  # 256 MiB in blocks of 16 MiB
    size = rows * columns * 4
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(pack({"t": entry([rows, columns], 0, size)}))
        file.truncate(file.tell() + size)
    command = [sys.executable, "-c", _READ_ROWS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 48 << 20


ONE = entry([1], 0, 4)
TWO = entry([1], 4, 8)
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty-file": (b"", "header too small"),
    "shorter-than-the-length-field": (b"\1\0\0", "header too small"),
    "html-page": (b"<!DOCTYPE html><html><body>Not found</body></html>", "header"),
    "git-lfs-pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "git lfs pull",
    ),
    "length-beyond-any-file": (pack({}, length=2**63), "header"),
    "length-beyond-this-file": (pack({}, length=100), "header"),
    "length-zero": (pack({"t": ONE}, b"0000", length=0), "JSON"),
    "length-cuts-the-json": (pack({"t": ONE}, b"0000", length=20), "JSON"),
    "not-json": (pack(b"{'t': 1}"), "JSON"),
    "not-utf8": (pack(b'{"\xff\xfe": 1}'), "UTF-8"),
    "not-an-object": (pack([1, 2]), "JSON"),
    "nested-too-deeply": (
        pack(b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":' + b"[" * 100_000),
        "JSON",
    ),
    "closed-but-nested-too-deeply": (
        pack(
            b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":%s%s}}'
            % (b"[" * 100_000, b"]" * 100_000),
            b"0000",
        ),
        "recursion",
    ),
    "number-of-many-digits": (
        pack(
            b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1%s}}' % (b"0" * 9000),
            b"0000",
        ),
        "out of range",
    ),
    "entry-is-no-object": (pack({"t": 5}), "JSON"),
    "entry-without-shape": (
        pack({"t": {"dtype": "F32", "data_offsets": [0, 4]}}, b"0000"),
        "shape",
    ),
    "entry-without-dtype": (pack({"t": {"shape": [1], "data_offsets": [0, 4]}}, b"0000"), "dtype"),
    "one-offset": (pack({"t": {**ONE, "data_offsets": [0]}}, b"0000"), "JSON"),
    "unknown-dtype": (pack({"t": entry([1], 0, 4, "F33")}, b"0000"), "F33"),
    "packed-4-bit": (pack({"t.w": entry([2], 0, 1, "F4")}, b"0"), "'t.w' has dtype F4"),
    "complex": (pack({"t.w": entry([1], 0, 8, "C64")}, b"0" * 8), "'t.w' has dtype C64"),
    "negative-dimension": (pack({"t": entry([-1], 0, 4)}, b"0000"), "-1"),
    "fractional-dimension": (pack({"t": entry([1.0], 0, 4)}, b"0000"), "1.0"),
    "negative-offset": (pack({"t": entry([1], -4, 0)}, b"0000"), "-4"),
    "offsets-out-of-range": (pack({"t": entry([1], 0, 4)}, b"00"), "not fully covered"),
    "offsets-reversed": (pack({"t": entry([1], 4, 0)}, b"0000"), "`t`"),
    "offsets-beyond-64-bits": (pack({"t": entry([1], 0, 2**64)}, b"0000"), "JSON"),
    "shape-and-offsets-disagree": (pack({"t": entry([3], 0, 4)}, b"0000"), "shape"),
    "dtype-and-offsets-disagree": (pack({"t": entry([1], 0, 4, "F64")}, b"0000"), "shape"),
    "shape-overflows": (pack({"t": entry([2**62, 2**62], 0, 4)}, b"0000"), "overflow"),
    "too-many-axes": (pack({"t.w": entry([1] * 99, 0, 4)}, b"0000"), "'t.w' has 99 axes"),
    "overlap": (pack({"t": ONE, "u": ONE}, b"0000"), "invalid offset for tensor"),
    "hole-between": (pack({"t": ONE, "u": entry([1], 8, 12)}, b"0" * 12), "`u`"),
    "hole-at-the-start": (pack({"u": TWO}, b"0" * 8), "`u`"),
    "bytes-after-the-end": (pack({"t": ONE}, b"0" * 8), "not fully covered"),
    "truncated": (save({"t": np.ones(64, np.float32)})[:-1], "not fully covered"),
    "same-name-twice": (
        pack(b'{"t.w":%s,"t.w":%s}' % ((json.dumps(ONE).encode(),) * 2), b"0000"),
        "'t.w' more than once",
    ),
    "same-key-twice-in-an-entry": (
        pack(b'{"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"0000"),
        "dtype",
    ),
    "metadata-is-no-text": (pack({"__metadata__": {"a": 1}, "t": ONE}, b"0000"), "JSON"),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_by_name(
    damage: str, error: type[Exception], tmp_path: Path
) -> None:
    content, culprit = DAMAGED[damage]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        SafetensorsFile(path, error)
    assert str(path) in str(caught.value)
    assert culprit in str(caught.value)


@pytest.mark.parametrize("error", ERRORS)
def test_a_missing_file_a_folder_and_a_dangling_link_are_refused(
    error: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, found in {
        "none": "no such file",
        "folder": "not a regular",
        "link": "no such",
    }.items():
        with pytest.raises(error, match=f"{name}: .*{found}"):
            SafetensorsFile(tmp_path / name, error)


def test_an_unknown_tensor_and_an_empty_one_are_refused_by_name(tmp_path: Path) -> None:
    empty = {"t": entry([0, 2**62], 0, 0), "u": entry([2, 0], 0, 0)}
    file = open_bytes(tmp_path, pack(empty))
    for name, found in {"t": "is empty", "u": "is empty", "v": "no tensor"}.items():
        with pytest.raises(ArtifactError, match=found) as caught:
            file.read(name)
        assert repr(name) in str(caught.value)


def test_a_file_cut_short_after_it_was_opened_gives_no_tensor(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, save({"t": np.ones(64, np.float32)}))
    with file.path.open("r+b") as stream:
        stream.truncate(file.path.stat().st_size - 1)
    with pytest.raises(ArtifactError, match=r"'t': found 255 of 256 bytes"):
        file.read("t")
    file.path.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        file.read("t")


VALID = save(
    {"a": np.ones((2, 3), np.float32), "b.weight": np.zeros(4, ml_dtypes.bfloat16)}, {"k": "v"}
)


def read_all(path: Path) -> dict[str, np.ndarray] | None:
    """Every tensor, or None where the file is refused; any other failure is the test's."""
    try:
        file = SafetensorsFile(path, ArtifactError)
        return {name: file.read(name) for name in file.tensors}
    except ArtifactError:
        return None


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_random_bytes_give_our_error_or_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    for data in (content, pack(content), pack(b"{" + content)):
        path.write_bytes(data)
        assert read_all(path) in (None, {})


@given(
    st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=3
    ),
    st.integers(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_a_mutated_file_gives_our_error_or_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(bytes(data[: len(data) - cut]))
    tensors = read_all(path)
    if tensors is not None:
        with safe_open(path, framework="pt") as reference:
            assert sorted(tensors) == sorted(reference.keys())
            for name, values in tensors.items():
                expected = reference.get_tensor(name).to(torch.float64).numpy()
                np.testing.assert_array_equal(values.astype(np.float64), expected)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.text(max_size=4) | st.just("__metadata__"),
        _json
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "F4", "F6_E2M3", "BOOL", "I64"]) | _json,
                "shape": st.lists(st.integers(-1, 3) | st.integers(), max_size=3) | _json,
                "data_offsets": st.lists(st.integers(0, 16) | st.integers(), max_size=3) | _json,
            }
        ),
        max_size=3,
    ),
    st.binary(max_size=16),
)
@settings(max_examples=150, deadline=None)
def test_a_random_header_gives_our_error_or_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes(pack(header, data))
    tensors = read_all(path)
    if tensors is not None:
        with safe_open(path, framework="np") as reference:
            assert sorted(tensors) == sorted(reference.keys())
