"""Folders from the hub: the pinned revision, the asked files, real files, one clear error."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_server import HubServer
from siren_runtime.bundle.hub import resolve_folder
from siren_runtime.errors import BundleError

PATTERNS = ["guard.json", "*.onnx", "weights.bin"]

# Run in a process of its own, since huggingface_hub reads the environment when it is imported.
_RESOLVE = """
import json, sys
from pathlib import Path
from siren_runtime.errors import BundleError
from siren_runtime.bundle.hub import resolve_folder

def no_hard_links(self, target):
    raise PermissionError(1, "Operation not permitted")

source, options, hard_links = json.loads(sys.argv[1])
if not hard_links:
    Path.hardlink_to = no_hard_links
try:
    folder = resolve_folder(source, error=BundleError, **options)
except BundleError as error:
    answer = {"error": str(error)}
else:
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    answer = {
        "name": folder.name,
        "files": {name: path.read_text() for name, path in files.items()},
        "symlinks": [name for name, path in files.items() if path.is_symlink()],
    }
print(json.dumps(answer))
"""


def make_repository(folder: Path, **content: str) -> Path:
    files = {"guard.json": "{}", "score.onnx": "graph", "plans/a.onnx": "plan", "weights.bin": "w"}
    others = {"README.md": "readme", "setup.py": "code", "pytorch_model.bin": "pickle"}
    for name, text in {**files, **others, **content}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def resolve(
    hub: HubServer, home: Path, source: str, *, hard_links: bool = True, **options: Any
) -> dict[str, Any]:
    """Call resolve_folder with `home` as the cache; options in capitals are environment."""
    environment = {name: options.pop(name) for name in list(options) if name.isupper()}
    arguments = json.dumps([source, {"patterns": PATTERNS, **options}, hard_links])
    return hub.run(_RESOLVE, arguments, home=home, **environment)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    main = make_repository(tmp_path / "main", **{"guard.json": "new"})
    old = make_repository(tmp_path / "old", **{"guard.json": "old"})
    secret = make_repository(tmp_path / "secret")
    repositories = {"org/guard": {"main": main, "v1": old}, "org/secret": {"main": secret}}
    with HubServer(repositories, gated={"org/secret": "hf_open_sesame"}) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_local_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    assert resolve_folder(tmp_path, patterns=PATTERNS, error=BundleError) == tmp_path
    assert resolve_folder(str(tmp_path), patterns=PATTERNS, error=BundleError) == tmp_path


@pytest.mark.parametrize(
    "source",
    [
        "",
        "no-such-folder",
        "a/b/c",
        "../org/name",
        "/no/such/folder",
        "org/na me",
        "org/",
        "https://example.com/org/name",
        "org/name\n",
        "org/" + "x" * 5000,
        "a\0b",
        Path("org/name"),
    ],
    ids=lambda source: repr(source)[:30],
)
def test_what_is_neither_a_folder_nor_a_repository_id_is_refused(source: str | Path) -> None:
    with pytest.raises(BundleError) as caught:
        resolve_folder(source, patterns=PATTERNS, error=BundleError)
    if not str(source).startswith("org/x"):
        assert repr(str(source)) in str(caught.value)


@pytest.mark.parametrize("revision", ["", "../../refs", "a b", "-x", "/main", "a//b", "a\n"])
def test_a_revision_that_could_leave_the_cache_is_refused(revision: str) -> None:
    with pytest.raises(BundleError, match="the revision"):
        resolve_folder("org/name", revision=revision, patterns=PATTERNS, error=BundleError)


def test_a_repository_becomes_a_folder_of_real_files_with_what_was_asked(
    hub: HubServer, home: Path
) -> None:
    answer = resolve(hub, home, "org/guard")
    assert answer["name"] == hub.commit("org/guard")
    assert answer["files"] == {
        "guard.json": "new", "score.onnx": "graph", "plans/a.onnx": "plan", "weights.bin": "w",
    }  # fmt: skip
    assert answer["symlinks"] == []
    assert not any(name in request for request in hub.requests for name in (".py", "pytorch"))


def test_real_files_are_made_where_hard_links_cannot_be(hub: HubServer, home: Path) -> None:
    answer = resolve(hub, home, "org/guard", hard_links=False)
    assert answer["files"] == resolve(hub, home, "org/guard", allow_symlinks=True)["files"]
    assert answer["symlinks"] == []


def test_the_second_time_no_file_is_downloaded(hub: HubServer, home: Path) -> None:
    first = resolve(hub, home, "org/guard")
    hub.requests.clear()
    assert resolve(hub, home, "org/guard") == first
    assert not any(request.startswith("GET /org/guard") for request in hub.requests)


def test_a_pinned_revision_is_honoured_by_name_and_by_commit(hub: HubServer, home: Path) -> None:
    commit = hub.commit("org/guard", "v1")
    for revision in ("v1", commit):
        answer = resolve(hub, home, "org/guard", revision=revision)
        assert (answer["name"], answer["files"]["guard.json"]) == (commit, "old")


def test_a_branch_that_moved_gives_its_new_files_beside_the_old_ones(
    hub: HubServer, home: Path, tmp_path: Path
) -> None:
    before = hub.commit("org/guard")
    resolve(hub, home, "org/guard")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "guard.json").write_text("newer")
    hub.repositories = {"org/guard": {"main": tmp_path / "moved", "before": tmp_path / "main"}}
    assert resolve(hub, home, "org/guard")["files"] == {"guard.json": "newer"}
    assert resolve(hub, home, "org/guard", revision=before)["files"]["guard.json"] == "new"


def test_a_gated_repository_opens_with_the_token_of_the_environment(
    hub: HubServer, home: Path
) -> None:
    error = resolve(hub, home, "org/secret")["error"]
    assert "org/secret" in error
    assert "gated" in error
    assert "HF_TOKEN" in error
    assert "files" in resolve(hub, home, "org/secret", HF_TOKEN="hf_open_sesame")


def test_an_unknown_repository_is_named_with_what_to_check(hub: HubServer, home: Path) -> None:
    error = resolve(hub, home, "org/other")["error"]
    assert "'org/other'" in error
    assert "no such repository, nor a local folder" in error


def test_an_unknown_revision_is_named(hub: HubServer, home: Path) -> None:
    error = resolve(hub, home, "org/guard", revision="v9")["error"]
    assert "'org/guard' (revision 'v9')" in error
    assert "no such revision" in error


def test_a_repository_without_any_of_the_files_is_refused(hub: HubServer, home: Path) -> None:
    error = resolve(hub, home, "org/guard", patterns=["siren.safetensors"])["error"]
    assert "'org/guard'" in error
    assert "none of siren.safetensors" in error


def test_an_endpoint_that_is_no_hub_is_named(hub: HubServer, home: Path) -> None:
    error = resolve(hub, home, "org/guard", HF_ENDPOINT=f"{hub.url}/elsewhere")["error"]
    assert f"{hub.url}/elsewhere" in error
    assert "HF_ENDPOINT" in error


def test_a_hub_that_is_down_is_an_error_until_the_files_are_cached(
    hub: HubServer, home: Path, tmp_path: Path
) -> None:
    cached = resolve(hub, home, "org/guard")
    with HubServer({}) as down:
        pass  # its port is closed again
    assert resolve(down, home, "org/guard") == cached
    error = resolve(down, tmp_path / "empty", "org/guard")["error"]
    assert "'org/guard' (revision 'main')" in error
    assert "cannot be reached" in error
    assert "local folder" in error


def test_offline_mode_serves_the_cache_and_nothing_else(
    hub: HubServer, home: Path, tmp_path: Path
) -> None:
    cached = resolve(hub, home, "org/guard", revision="v1")
    hub.requests.clear()
    assert resolve(hub, home, "org/guard", revision="v1", HF_HUB_OFFLINE="1") == cached
    error = resolve(hub, tmp_path / "empty", "org/guard", HF_HUB_OFFLINE="1")["error"]
    assert "HF_HUB_OFFLINE" in error
    assert hub.requests == []
