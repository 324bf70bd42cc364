"""A path is a path, a hub id is one; a cache is read wherever it lies and says what it lacks."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_server import HubServer
from siren_runtime import Guard
from siren_runtime.bundle.hub import resolve_folder
from siren_runtime.errors import BundleError

# As if the cache lay on a read-only disk: whatever would write there fails as it does on one.
_READ_ONLY = """
import errno, os, sys
def refuse(event, arguments):
    writes = event in ("os.mkdir", "os.link", "os.rename", "os.remove", "os.symlink", "os.chmod")
    if event == "open" and isinstance(arguments[2], int):
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    paths = [os.fspath(a) for a in arguments if isinstance(a, (str, os.PathLike))]
    if writes and any(path.startswith(sys.argv[3]) for path in paths):
        raise OSError(int(sys.argv[4]), "the disk is read-only", paths[0])
sys.addaudithook(refuse)
"""
_SCORE = """
import json, sys
from siren_runtime import Guard, SirenError
try:
    answer = {"score": Guard.load(sys.argv[1]).score(sys.argv[2]).score}
except SirenError as error:
    answer = {"error": str(error)}
print(json.dumps(answer))
"""
TEXT = "hello"


def score(
    hub: HubServer, home: Path, source: str, *, read_only: int = 0, **environment: str
) -> dict[str, Any]:
    """Score `TEXT` in a process of its own, which reads the environment anew."""
    code = _READ_ONLY + _SCORE if read_only else _SCORE
    return hub.run(code, source, TEXT, str(home), str(read_only), home=home, **environment)


@pytest.fixture
def hub(bundle: Path) -> Iterator[HubServer]:
    with HubServer({"org/guard": {"main": bundle}}) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(scope="module")
def downloaded(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the guard was loaded into; do not change it."""
    folder = tmp_path_factory.mktemp("downloaded") / "home"
    with HubServer({"org/guard": {"main": bundle}}) as server:
        assert "score" in score(server, folder, "org/guard")
    return folder


@pytest.fixture
def repository(downloaded: Path, home: Path) -> Path:
    """The guard's folder in the cache of `home`."""
    shutil.copytree(downloaded, home, symlinks=True)
    (folder,) = (home / "hub").glob("models--*")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which a folder "guards" is."""
    (tmp_path / "here" / "guards").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the hub fails the test."""
    import huggingface_hub

    def asked(*arguments: Any, **settings: Any) -> str:
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)


def test_what_an_alarm_of_the_caller_raises_amid_a_download_comes_out_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    def interrupted(*arguments: Any, **settings: Any) -> str:
        raise TimeoutError("of the caller")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", interrupted)
    with pytest.raises(TimeoutError, match=r"^of the caller$"):
        resolve_folder("org/guard", patterns=["*"], error=BundleError)


@pytest.mark.usefixtures("here", "no_hub")
@pytest.mark.parametrize(
    "source",
    [
        "guards/small",
        "./guards",
        "./org/name",
        "../org/name",
        ".hidden/name",
        "/org/name",
        "~/no-such-folder",
        "~no-such-user/name",
        "org/name/",
        "org/name/more",
        "name",
        "name/",
        Path("org/name"),
    ],
    ids=repr,
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(source: str | Path) -> None:
    if source == "./guards":
        assert resolve_folder(source, patterns=["*"], error=BundleError) == Path("guards")
        return
    with pytest.raises(BundleError, match=r"neither a folder that is there|there is a folder"):
        Guard.load(source)


@pytest.mark.usefixtures("here", "no_hub")
def test_an_error_of_a_path_that_may_be_an_id_says_how_to_name_either() -> None:
    with pytest.raises(BundleError) as caught:
        Guard.load("guards/small")
    assert "there is a folder 'guards' here and nothing of that name in it" in str(caught.value)
    assert "'hf://guards/small'" in str(caught.value)


def test_a_local_folder_wins_over_a_repository_of_its_name(here: Path) -> None:
    (here / "org" / "guard").mkdir(parents=True)
    found = resolve_folder("org/guard", patterns=["*"], error=BundleError)
    assert found == Path("org/guard")


def test_a_folder_of_the_home_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert resolve_folder("~/guards", patterns=["*"], error=BundleError) == here / "guards"


def test_a_prefix_makes_an_id_of_what_may_be_a_path(hub: HubServer, home: Path, here: Path) -> None:
    (here / "org").mkdir()
    assert "there is a folder 'org'" in score(hub, home, "org/guard")["error"]
    assert hub.requests == []
    assert "score" in score(hub, home, "hf://org/guard")


@pytest.mark.parametrize(
    ("number", "offline", "placed"),
    [
        (errno.EROFS, "0", True),
        (errno.EROFS, "1", False),
        (errno.EACCES, "0", False),
        (errno.EACCES, "1", True),
    ],
)
def test_a_cache_that_cannot_be_written_is_read(
    number: int,
    offline: str,
    placed: bool,
    hub: HubServer,
    home: Path,
    repository: Path,
    bundle: Path,
) -> None:
    if not placed:  # as another program leaves it
        shutil.rmtree(repository / "real")
    expected = {"score": Guard.load(bundle).score(TEXT).score}
    found = score(hub, home, "org/guard", read_only=number, HF_HUB_OFFLINE=offline)
    assert found == expected
    assert (repository / "real").exists() == placed


def test_a_link_out_of_the_cache_is_still_refused(
    hub: HubServer, home: Path, repository: Path, tmp_path: Path
) -> None:
    (snapshot,) = repository.glob("snapshots/*")
    shutil.rmtree(repository / "real")
    outside = tmp_path / "weights.bin"
    shutil.copyfile(snapshot / "weights.bin", outside)
    (snapshot / "weights.bin").unlink()
    (snapshot / "weights.bin").symlink_to(outside)
    found = score(hub, home, "org/guard", read_only=errno.EROFS, HF_HUB_OFFLINE="1")
    assert "symbolic link" in found["error"]


@pytest.mark.parametrize(
    ("lacking", "listed", "part"),
    [
        ("tokenizer.json", True, "snapshot"),
        ("tokenizer.json", False, "blob"),
        ("weights.bin", True, "blob"),
        ("weights.bin", False, "snapshot"),
        ("guard.json", True, "snapshot"),
        ("guard.json", False, "blob"),
    ],
)
def test_a_snapshot_that_lacks_a_file_is_said_to_be_incomplete(
    lacking: str, listed: bool, part: str, hub: HubServer, home: Path, repository: Path
) -> None:
    """Whether or not the client keeps a list of the repository's files."""
    (snapshot,) = repository.glob("snapshots/*")
    shutil.rmtree(repository / "real")
    if not listed:
        shutil.rmtree(repository / "trees", ignore_errors=True)
    path = snapshot / lacking
    (path if part == "snapshot" else path.resolve()).unlink()
    error = score(hub, home, "org/guard", HF_HUB_OFFLINE="1")["error"]
    assert "org/guard" in error
    assert "cached snapshot" in error
    assert "incomplete" in error
    assert lacking in error
    assert "score" in score(hub, home, "org/guard")  # with the hub in reach


@pytest.mark.parametrize("listed", ["guard.json", "config.json"])
def test_a_snapshot_by_its_path_is_incomplete_where_its_repository_has_what_it_lacks(
    listed: str, tmp_path: Path
) -> None:
    """As a download that was interrupted, or was asked for less, leaves it."""
    repository = tmp_path / "models--org--guard"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "trees").mkdir()
    files = {listed: {"size": 2}, "README.md": {"size": 1}}
    (repository / "trees" / "abc.json").write_text(json.dumps({"files": files}))
    with pytest.raises(BundleError, match=r"guard\.json: missing; ") as caught:
        Guard.load(repository / "snapshots" / "abc")
    assert ("org/guard may be incomplete" in str(caught.value)) == (listed == "guard.json")


def test_a_repository_that_is_no_bundle_is_not_said_to_be_incomplete(
    bundle: Path, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "backbone").mkdir()
    shutil.copyfile(bundle / "tokenizer.json", tmp_path / "backbone" / "tokenizer.json")
    with HubServer({"org/backbone": {"main": tmp_path / "backbone"}}) as hub:
        error = score(hub, home, "org/backbone")["error"]
    assert "guard.json: missing; copy the whole bundle" in error
    assert "incomplete" not in error
