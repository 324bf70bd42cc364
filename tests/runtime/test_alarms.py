"""An alarm's TimeoutError comes out as it is, whatever is read or written when it rings."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, cast

import pytest

from siren_runtime.backends.tensorrt import gpu
from siren_runtime.backends.tensorrt.library import load_library
from siren_runtime.backends.tensorrt.plan import Plan, plans_folder, read_record
from siren_runtime.bundle.ensemble import is_ensemble
from siren_runtime.bundle.hub import advice_where_lacking, resolve_folder
from siren_runtime.bundle.reader import Bundle, read_manifest
from siren_runtime.errors import BundleError
from siren_runtime.generation.folder import CONFIG_FILE, read_folder

UNREAD = cast("Any", None)  # what is not looked at before


def ring(*_: object, **__: object) -> NoReturn:
    raise TimeoutError("of the caller")


class _Ringing(ModuleType):
    def __getattr__(self, name: str) -> NoReturn:
        ring()


@pytest.mark.parametrize(
    ("amid", "name", "read"),
    [
        (os.path, "realpath", lambda path: read_manifest(path, "guard.json")),
        (Path, "lstat", is_ensemble),
        (Path, "read_bytes", read_folder),
        (Path, "read_bytes", lambda path: Plan(path / "a.plan", UNREAD).read()),
        (Path, "open", lambda path: read_record(path / "a.json")),
        (Path, "mkdir", lambda path: plans_folder(Bundle(path, UNREAD))),
        (importlib, "import_module", lambda _: load_library("tensorrt")),
        (Path, "is_dir", lambda path: resolve_folder(path, patterns=["*"], error=BundleError)),
    ],
)
def test_a_local_file(
    amid: Any,
    name: str,
    read: Callable[[Path], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / CONFIG_FILE).write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(amid, name, ring)
        with pytest.raises(TimeoutError, match=r"^of the caller$"):
            read(tmp_path)


def test_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, _Ringing(name))
    gpu.runtime.cache_clear()
    with pytest.raises(TimeoutError, match=r"^of the caller$"):
        gpu.runtime()


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of a repository, which the hub gives for it."""
    import huggingface_hub

    folder = tmp_path / "models--org--guard" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "guard.json").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    return folder


def _no_link(path: Path, target: Path) -> NoReturn:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize(
    ("link", "copy"), [(ring, None), (_no_link, ring)], ids=["linked", "copied"]
)
@pytest.mark.usefixtures("snapshot")
def test_a_file_of_the_hub_as_it_is_placed(
    link: Callable[..., object],
    copy: Callable[..., object] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Path, "hardlink_to", link)
    if copy is not None:
        monkeypatch.setattr("shutil.copyfile", copy)
    with pytest.raises(TimeoutError, match=r"^of the caller$"):
        resolve_folder("org/guard", patterns=["*"], error=BundleError)


def test_the_list_of_a_repository(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", ring)
        with pytest.raises(TimeoutError, match=r"^of the caller$"):
            advice_where_lacking(snapshot, "weights.bin")
