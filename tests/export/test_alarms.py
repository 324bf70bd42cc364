"""An alarm's TimeoutError comes out as it is, whatever of an export is read or written then."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from gguf_files import write_gguf
from siren_export.bundle_writer import check_output
from siren_export.graft.graft import link_or_copy
from siren_export.passes.calibration import read_calibration
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.sources.onnx_file import open_graph
from siren_export.sources.packaged import Joined, join_parts
from siren_export.sources.tokenizer import read_tokenizer
from siren_export.verify.reference import read_reference

JOINED = Joined("whole", 4, hashlib.sha256(b"data").hexdigest())
UNREAD = cast("Any", None)  # what is not looked at before


def ring(*_: object, **__: object) -> NoReturn:
    raise TimeoutError("of the caller")


def _overwrite(path: Path) -> None:
    check_output(path, overwrite=True)


def _join(path: Path) -> None:
    join_parts([path / "model.onnx"], JOINED, "some-model")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With something for every one to read, in which a cache is too."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for name in ("guard.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.onnx").write_bytes(b"data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("amid", "read"),
    [
        ("os.link", lambda path: link_or_copy(path / "model.onnx", path / "link")),
        ("pathlib.Path.open", lambda path: read_calibration(path / "config.json")),
        ("pathlib.Path.read_bytes", lambda path: read_reference(path / "guard.json", UNREAD)),
        (
            "siren_export.sources.onnx_file.external_data_locations",
            lambda path: open_graph(path / "model.onnx"),
        ),
        ("pathlib.Path.mkdir", _join),
    ],
)
def test_a_file(
    amid: str, read: Callable[[Path], object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(amid, ring)
        with pytest.raises(TimeoutError, match=r"^of the caller$"):
            read(folder)
    assert not os.path.lexists(folder / "link")


def test_a_bundle_that_is_to_be_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siren_export.bundle_writer.is_grafted", lambda _: False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", ring)
        with pytest.raises(TimeoutError, match=r"^of the caller$"):
            _overwrite(folder)


def test_a_file_of_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _join(folder)
    monkeypatch.setattr("siren_export.sources.packaged.sha256_of", ring)
    with pytest.raises(TimeoutError, match=r"^of the caller$"):
        _join(folder)


def test_a_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "siren_export.sources.tokenizer.Tokenizer"
    monkeypatch.setattr(module, SimpleNamespace(from_str=ring))
    with pytest.raises(TimeoutError, match=r"^of the caller$"):
        read_tokenizer(folder, {})


def test_a_tokenizer_of_a_gguf_file(
    backbone_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf", backbone_folder("llama"), pre="llama-bpe")
    monkeypatch.setattr("siren_export.sources.gguf_tokenizer.byte_level", ring)
    with pytest.raises(TimeoutError, match=r"^of the caller$"):
        load_checkpoint(path)
