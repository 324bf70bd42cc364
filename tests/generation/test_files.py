"""A grafted folder is opened if its files are those that were grafted, and each token is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from generators import need_genai
from mutations import LFS_POINTER
from siren_export.graft.graft import graft
from siren_export.heads.registry import load_artifact
from siren_runtime import BackendError, BundleError, GuardedGenerator, InputError
from siren_runtime.bundle.reader import Verify
from siren_runtime.errors import CheckpointError
from siren_runtime.generation import generator as loading
from siren_runtime.generation.engine import Engine
from siren_runtime.generation.folder import CONFIG_FILE, read_folder
from siren_runtime.generation.manifest import load_manifest
from siren_train.store.generator import open_generator

need_genai()
WEIGHTS = ("model.onnx.data", "siren.bin")
OF_THE_MODEL = (CONFIG_FILE, "model.onnx", "model.onnx.data", "tokenizer.json")


@pytest.mark.parametrize("name", ["model.onnx", "head.onnx", CONFIG_FILE, *WEIGHTS])
def test_another_file_than_was_grafted_is_refused(copied: Path, name: str) -> None:
    (copied / name).write_bytes((copied / name).read_bytes() + b" ")
    with pytest.raises(BundleError, match=r"bytes, not the .* graft it again, else copy the fol"):
        GuardedGenerator.load(copied, verify="size")


@pytest.mark.parametrize("verify", ["size", "read"])
@pytest.mark.parametrize("name", ["guard.json", "head.onnx", "siren.bin", *OF_THE_MODEL])
def test_a_pointer_of_git_lfs_is_named(copied: Path, name: str, verify: Verify) -> None:
    (copied / name).write_text(LFS_POINTER)
    with pytest.raises(BundleError, match=rf"{name}: .*git LFS.*`git lfs pull`"):
        GuardedGenerator.load(copied, verify=verify)


@pytest.mark.parametrize("name", [*OF_THE_MODEL, "tokenizer_config.json"])
def test_a_pointer_of_git_lfs_is_named_before_a_folder_is_grafted_or_pools(
    generator: Callable[..., Path], head: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(generator("llama"), tmp_path / "genai"))
    (folder / name).write_text(LFS_POINTER)
    message = rf"{name}: .*git LFS.*`git lfs pull`"
    with pytest.raises(CheckpointError, match=message):
        open_generator(str(folder), "plain")
    with pytest.raises(CheckpointError, match=message):
        graft(folder, load_artifact(head), tmp_path / "out", foreign=True)


@pytest.mark.parametrize("name", ["head.onnx", CONFIG_FILE, *WEIGHTS])
def test_a_byte_that_was_changed_is_found(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[100] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: SHA-256 .* not that of the file that was"):
        GuardedGenerator.load(copied)


def _damage(head: Path) -> None:
    data = bytearray(head.read_bytes())
    data[100] ^= 1
    head.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [(_damage, r"head\.onnx: SHA-256 .* not that"), (Path.unlink, r"head\.onnx: cannot be read")],
)
def test_a_head_that_changes_while_the_others_are_checked_is_found(
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    message: str,
) -> None:
    check = loading.check_files

    def checked(path: Path, *rest: Any) -> None:
        check(path, *rest)
        change(path / "head.onnx")

    monkeypatch.setattr(loading, "check_files", checked)
    with pytest.raises(BundleError, match=message):
        GuardedGenerator.load(copied)


@pytest.mark.parametrize("name", WEIGHTS)
def test_zeroed_weights_are_refused_unless_hashes_are_left_out(copied: Path, name: str) -> None:
    (copied / name).write_bytes(bytes((copied / name).stat().st_size))
    with pytest.raises(BundleError, match=rf"{name}: SHA-256 .* not that of the file that was"):
        GuardedGenerator.load(copied)
    assert GuardedGenerator.load(copied, verify="size").read("bread").tokens > 1


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("verify", ["size", "read", "full"])
def test_truncated_weights_are_refused(copied: Path, name: str, verify: str) -> None:
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match="bytes, not the"):
        GuardedGenerator.load(copied, verify=verify)  # type: ignore[arg-type]


def test_damaged_weights_are_named_where_the_engine_fails_by_them(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BackendError("it cannot be loaded")

    monkeypatch.setattr(Engine, "__init__", fail)
    with pytest.raises(BackendError, match="it cannot be loaded"):
        GuardedGenerator.load(copied)
    (copied / "siren.bin").write_bytes(bytes((copied / "siren.bin").stat().st_size))
    with pytest.raises(BundleError, match="not that of the file that was grafted"):
        GuardedGenerator.load(copied)


@pytest.mark.parametrize("verify", [True, False, None, "none"])
def test_a_check_that_there_is_not_is_refused(grafted: Path, verify: object) -> None:
    with pytest.raises(InputError, match="verify must be one of size, read, full, found"):
        GuardedGenerator.load(grafted, verify=verify)  # type: ignore[arg-type]


def _search(folder: Path, **settings: int) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["search"] |= settings
    (folder / CONFIG_FILE).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_beams", 2), ("num_return_sequences", 2), ("batch_size", 2), ("chunk_size", 64)],
)
def test_a_search_that_does_not_read_each_token_of_one_sequence_is_refused(
    copied: Path, head: Path, tmp_path: Path, name: str, value: int
) -> None:
    _search(copied, **{name: value})
    message = rf"genai_config\.json: search\.{name} is {value}.*; set it to"
    with pytest.raises(BundleError, match=message):
        Engine(copied)
    with pytest.raises(CheckpointError, match=message):
        open_generator(str(copied), "plain")
    with pytest.raises(CheckpointError, match=message):
        graft(copied, load_artifact(head), tmp_path / "out", foreign=True)


def test_a_prompt_that_is_not_read_in_parts_may_be_said_so(copied: Path) -> None:
    _search(copied, num_beams=1, chunk_size=0)
    run = Engine(copied, threads=1).run(9, {})
    run.append([5, 6, 7])
    assert run.output("logits").shape[:2] == (1, 3)


def test_a_folder_whose_name_is_too_long_to_be_one_is_refused(tmp_path: Path) -> None:
    for read in (read_folder, load_manifest):
        with pytest.raises(BundleError, match="aaa"):
            read(tmp_path / ("a" * 300))
