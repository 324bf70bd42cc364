"""Each damaged or hostile bundle gets one clear error, and one line from the command."""

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from damages import DAMAGES, HIDDEN_DAMAGES, list_file
from siren_runtime import BackendError, BundleError, Guard
from siren_runtime.commands.siren import app


def _run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments])
    assert "Traceback" not in result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    return result.exit_code, result.stderr


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_bundle_does_not_load(name: str, own_bundle: Path) -> None:
    DAMAGES[name](own_bundle)
    with pytest.raises((BundleError, BackendError)) as caught:
        Guard.load(own_bundle)
    assert str(own_bundle.resolve()) in str(caught.value)  # says which file


@pytest.mark.parametrize("name", DAMAGES)
def test_the_command_says_so_in_one_line(name: str, own_bundle: Path) -> None:
    DAMAGES[name](own_bundle)
    for arguments in (["score", str(own_bundle), "hello"], ["inspect", str(own_bundle), "--check"]):
        code, stderr = _run(*arguments)
        assert code == 1
        assert stderr.startswith("siren: error: ")
        assert stderr.count("\n") == 1


@pytest.mark.parametrize("name", HIDDEN_DAMAGES)
def test_inspect_check_finds_what_sizes_do_not_show(name: str, own_bundle: Path) -> None:
    HIDDEN_DAMAGES[name](own_bundle)
    code, stderr = _run("inspect", str(own_bundle), "--check")
    assert code == 1
    assert stderr.startswith("siren: error: ")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("name", [*HIDDEN_DAMAGES][:3])
def test_verify_full_finds_what_sizes_do_not_show(name: str, own_bundle: Path) -> None:
    HIDDEN_DAMAGES[name](own_bundle)
    with pytest.raises(BundleError, match="SHA-256"):
        Guard.load(own_bundle, verify="full")


def test_control_characters_of_a_hostile_manifest_do_not_reach_the_terminal(
    own_bundle: Path,
) -> None:
    list_file(own_bundle, "\x1b]0;owned\x07\n.bin")
    _, stderr = _run("inspect", str(own_bundle))
    assert "\x1b" not in stderr
    assert "\x07" not in stderr


def test_a_manifest_with_huge_numbers_is_refused(own_bundle: Path) -> None:
    text = msgspec.json.decode((own_bundle / "guard.json").read_bytes())
    text["heads"]["harm"]["layers"] = [10**40]
    (own_bundle / "guard.json").write_bytes(str(text).replace("'", '"').encode())
    with pytest.raises(BundleError):
        Guard.load(own_bundle)
