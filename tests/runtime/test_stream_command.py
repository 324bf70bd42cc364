"""`siren stream` takes the bounds and spans that other commands take, and says what decided."""

from pathlib import Path

import pytest

from siren_command import rows, siren
from tiny_bundle import HARM, edit_manifest, make_alarm

pytestmark = pytest.mark.filterwarnings("ignore:.*re-encodes its text")

TEXT = "a" * 10 + HARM * 8 + "a" * 10


@pytest.fixture(scope="module")
def alarm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose score is that of the share of z, with a threshold of spans."""
    bundle = make_alarm(tmp_path_factory.mktemp("alarm") / "bundle", 8)
    own = {"threshold": 0.95, "spans": [{"tokens": 8, "threshold": 0.96}]}
    edit_manifest(bundle, lambda manifest: manifest.update(own))
    return bundle


def test_spans_decide_in_a_stream_unless_they_are_left_out(alarm: Path) -> None:
    (*_, found) = rows(siren("stream", alarm, input=TEXT))
    assert (found["is_harmful"], found["spans"][0]["decides"]) == (True, True)
    (*_, plain) = rows(siren("stream", alarm, "--no-spans", input=TEXT))
    assert (plain["is_harmful"], "spans" in plain) == (False, False)


def test_the_last_line_says_what_decided_and_that_text_slid_out(alarm: Path) -> None:
    def last_line(*options: object, text: str = TEXT) -> str:
        done = siren("stream", alarm, "--format", "color", *options, input=text)
        assert done.exit_code == 0, done.stderr
        return done.stderr.splitlines()[-1]

    by_span = last_line()
    assert "harmful: score 0.99" in by_span
    assert by_span.endswith(f"of threshold 0.96 in 8 tokens of it after {len(TEXT) + 1} tokens")
    by_text = last_line("--no-spans")
    assert by_text.endswith(f"of threshold 0.95 after {len(TEXT) + 1} tokens")
    slid = last_line("--max-tokens", 16, text="a" * 60)
    assert slid.endswith("tokens, some of which slid out")


def test_a_long_prompt_is_read_where_its_bound_is_raised(alarm: Path) -> None:
    command = "stream", alarm, "--prompt", "a" * 17_000, "--no-spans"
    refused = siren(*command, input="a")
    assert refused.exit_code == 1
    assert "--max-prompt-tokens" in refused.stderr
    (*_, found) = rows(siren(*command, "--max-prompt-tokens", 20_000, input="a"))
    assert found["tokens"] > 17_000
    assert siren(*command, "--max-prompt-tokens", 1000, input="a").exit_code == 2  # under a piece's
