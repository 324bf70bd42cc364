"""siren serve refuses what it would leave unread, and says what it cannot use."""

from pathlib import Path

import pytest

from siren_command import siren


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "annotate"], "--mode goes with --upstream"),
        (["--fail-open"], "--fail-open goes with --upstream"),
        (["--block-at", "0.5"], "--block-at goes with --upstream or --generate"),
        (["--holdback", "3"], "--holdback goes with --upstream or --generate"),
        (["--response-only"], "--response-only goes with --upstream"),
        (["--generate-tokens", "5"], "--generate-tokens goes with --generate"),
        (["--upstream", "http://localhost:1/v1", "--generate-tokens", "5"], "goes with --generate"),
        (["--every", "4"], "--every goes with --generate"),
        (["--generate", "folder", "--mode", "log"], "--mode goes with --upstream"),
        (["--generate", "folder", "--fail-open"], "--fail-open goes with --upstream"),
    ],
)
def test_options_of_what_is_not_served_are_refused(
    bundle: Path, options: list[str], message: str
) -> None:
    result = siren("serve", bundle, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split()).replace("│ ", "")


def test_a_host_without_an_address_is_named(bundle: Path) -> None:
    result = siren("serve", bundle, "--host", "nosuchhost.invalid")
    assert result.exit_code == 1
    assert "--host nosuchhost.invalid" in result.stderr
