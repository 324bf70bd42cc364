"""A bundle takes its place and harms nothing that is there, or is refused at once."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from halfway import Start, halfway
from siren_export.bundle_writer import check_output, staging
from siren_runtime.errors import BundleError

_EXPORT = """
from pathlib import Path
from siren_export.bundle_writer import staging

with staging(Path(sys.argv[1]), overwrite=False) as folder:
    (folder / "weights.bin").write_text("theirs")
    print(folder, flush=True)
    sys.stdin.read()
    (folder / "guard.json").write_text("theirs")
"""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "b[1]**"


@pytest.fixture
def start(output: Path) -> Iterator[Start]:
    """Start an export in a process of that number; it waits in its hidden folder."""
    with halfway(_EXPORT, output) as begin:
        yield begin


def put(output: Path, *, overwrite: bool = False, grafted: bool = False) -> None:
    """Write something that passes for a bundle."""
    task = "generation" if grafted else "content"
    with staging(output, overwrite=overwrite, grafted=grafted) as folder:
        (folder / "weights.bin").write_text("ours")
        text = f'{{"format_version": 2, "task": "{task}", "files": {{"weights.bin": {{}}}}}}'
        (folder / "guard.json").write_text(text)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_killed_export_of_another_container_is_cleaned_up_and_blocks_none(
    output: Path, start: Start
) -> None:
    process, folder = start(os.getpid())  # a number that is alive here
    process.kill()
    process.wait()
    assert folder.exists()
    put(output)
    assert names(output.parent) == {output.name}


def test_a_running_export_of_another_container_is_left_alone_and_replaces_nothing(
    output: Path, start: Start
) -> None:
    process, folder = start(99999999)  # a number that is of no process here
    put(output)
    assert (folder / "weights.bin").read_text() == "theirs"
    _, told = process.communicate()
    assert "exists; give --overwrite" in told
    assert (output / "weights.bin").read_text() == "ours"
    assert names(output.parent) == {output.name}


def test_of_two_exports_at_once_the_later_one_does_not_destroy_the_earlier(output: Path) -> None:
    def later() -> None:
        with staging(output, overwrite=False):
            put(output)

    with pytest.raises(BundleError, match="exists; give --overwrite"):
        later()
    assert (output / "weights.bin").read_text() == "ours"
    assert names(output.parent) == {output.name}


def test_what_is_put_there_in_the_last_moment_is_not_replaced_either(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_and_lose_the_race(output: Path, **_: object) -> None:
        if list(output.parent.glob(".*")):
            output.mkdir()
            (output / "thesis.txt").write_text("years of work")

    monkeypatch.setattr("siren_export.bundle_writer.check_output", check_and_lose_the_race)
    with pytest.raises(BundleError, match="the bundle cannot be written"):
        put(output)
    assert (output / "thesis.txt").read_text() == "years of work"


def test_only_what_exports_left_is_removed_beside_the_output(output: Path) -> None:
    theirs = {".b[1]**.notes-20261121", ".b[1]**.partial-abcd1234", ".b[1]**.partial-1"}
    for name in theirs:
        (output.parent / name).mkdir()
    put(output)
    assert names(output.parent) == {*theirs, output.name}


def test_a_bundle_may_be_read_by_whom_the_system_lets(output: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    put(output)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (output, tmp_path / "made")]
    assert modes[0] == modes[1]


def test_a_bundle_is_overwritten_with_its_plans_but_not_with_what_is_not_its_own(
    output: Path,
) -> None:
    put(output)
    (output / "plans").mkdir()
    put(output, overwrite=True)
    assert names(output) == {"weights.bin", "guard.json"}
    (output / "notes.md").write_text("mine")
    with pytest.raises(BundleError, match=r"holds 'notes\.md' beside the bundle"):
        put(output, overwrite=True)
    assert (output / "notes.md").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"files": 3}', "\udcff"])
def test_a_folder_whose_guard_json_says_nothing_is_not_overwritten(output: Path, text: str) -> None:
    output.mkdir()
    (output / "guard.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BundleError, match=r"guard\.json: does not say what the bundle holds"):
        check_output(output, overwrite=True)


@pytest.mark.parametrize(("grafted", "message"), [(True, "is a grafted"), (False, "is no grafted")])
def test_a_guard_and_a_grafted_generator_do_not_replace_one_another(
    output: Path, grafted: bool, message: str
) -> None:
    put(output, grafted=grafted)
    with pytest.raises(BundleError, match=message):
        put(output, overwrite=True, grafted=not grafted)
    put(output, overwrite=True, grafted=grafted)


def _link_to_nothing(output: Path) -> None:
    output.symlink_to("nowhere")


def _link_to_an_empty_folder(output: Path) -> None:
    (output.parent / "empty").mkdir()
    output.symlink_to("empty")


def _below_a_file(output: Path) -> None:
    output.parent.rmdir()
    output.parent.write_text("a file")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_link_to_nothing, "is a link, and not to a bundle"),
        (_link_to_an_empty_folder, "is a link, and not to a bundle"),
        (_below_a_file, "the bundle cannot be written: .*Not a directory"),
        (Path.touch, "is not a bundle"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_place_that_no_bundle_can_take_is_refused_first(
    tmp_path: Path, prepare: Callable[[Path], None], message: str, overwrite: bool
) -> None:
    output = tmp_path / "there" / "bundle"
    output.parent.mkdir()
    prepare(output)
    with pytest.raises(BundleError, match=message):
        check_output(output, overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_mount_point_is_refused_with_what_to_name_instead(
    output: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    output.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == output)
    with pytest.raises(BundleError, match=r"is a mount point, .*/guard"):
        check_output(output, overwrite=overwrite)


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_output(tmp_path / "not" / "yet" / "there", overwrite=False)
    assert not names(tmp_path)


def test_an_empty_folder_is_taken(output: Path) -> None:
    output.mkdir()
    put(output)
    assert names(output) == {"weights.bin", "guard.json"}
