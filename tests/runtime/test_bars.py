"""How far long work is, in a terminal and in a log."""

import io
import sys

import pytest

from siren_runtime.bundle.progress import by_length, suffixed
from siren_runtime.commands import bars
from siren_runtime.commands.bars import Bars

STEP_S = 20


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock that a test sets."""
    now = [0]
    monkeypatch.setattr(bars, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_with_the_time_left(
    seconds: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with Bars() as shown:
        for done in range(11):
            seconds[0] = done * STEP_S
            shown.update("probes", 1000 + done * 100, 2000)
        shown.update("probes", 2000, 2000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "siren: probes: 1,200 of 2,000, 5.0/s, 0:02:40 left"
    assert lines[-1] == "siren: probes: 2,000 of 2,000, in 0:03:20"
    assert len(lines) == 5  # every second update, as each comes after 20 of 30 seconds


def test_a_stage_that_stands_still_says_so(
    seconds: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with Bars() as shown:
        for seconds[0] in (0, 31):
            shown.update("search", 0, 4)
    assert capsys.readouterr().err == "siren: search: 0 of 4, no rate yet\n"


def test_a_stage_that_begins_anew_has_a_time_of_its_own(
    seconds: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with Bars() as shown:
        for seconds[0], done in ((0, 0), (40, 4), (50, 0), (60, 4)):
            shown.update("write", done, 4)
    assert capsys.readouterr().err.splitlines() == [
        "siren: write: 4 of 4, in 0:00:40",
        "siren: write: 4 of 4, in 0:00:10",
    ]


def test_stages_have_names_and_may_count_bytes(
    seconds: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with Bars({"write": "writing weights"}, in_bytes=("write",)) as shown:
        for seconds[0], done in ((0, 0), (40, 80_000_000), (50, 200_000_000)):
            shown.update("write", done, 200_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "siren: writing weights: 80.0 MB of 200.0 MB, 2.0 MB/s, 0:01:00 left",
        "siren: writing weights: 200.0 MB of 200.0 MB, in 0:00:50",
    ]


def test_the_time_left_goes_by_the_work_where_some_rows_are_longer(
    seconds: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with Bars() as shown:
        tell = by_length(shown.update, "scoring", [100, 100, 100, 700])
        for seconds[0], done in ((0, 0), (60, 3), (200, 4)):
            tell(done)
    assert capsys.readouterr().err.splitlines() == [
        "siren: scoring: 3 of 4, 0.0/s, 0:02:20 left",
        "siren: scoring: 4 of 4, in 0:03:20",
    ]


def test_stages_may_share_one_bar(seconds: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(one=True) as shown:
        for seconds[0], stage in ((0, "a"), (10, "b"), (35, "c"), (40, "d")):
            shown.update(stage, seconds[0], 40)
    assert capsys.readouterr().err.splitlines() == [
        "siren: c: 35 of 40, 1.0/s, 0:00:05 left",
        "siren: d: 40 of 40, in 0:00:40",
    ]


def test_a_name_may_tell_stages_of_the_same_work_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Bars() as shown:
        by_length(suffixed(shown.update, " for the temperature"), "scoring", [1, 2])(2)
    assert capsys.readouterr().err == "siren: scoring for the temperature: 2 of 2, in 0:00:00\n"


def terminal_for(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Make standard error a terminal. No fixture can: pytest takes it anew for the test itself."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def last_shown(terminal: io.StringIO) -> str:
    """The bar of the stage scoring, as it was drawn last."""
    return [line for line in terminal.getvalue().splitlines() if "scoring" in line][-1]


def test_a_bar_shows_rows_and_the_time_left_by_the_work(
    seconds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a minute lies between two updates."""
    terminal = terminal_for(monkeypatch)
    with Bars() as shown:
        tell = by_length(shown.update, "scoring", [100, 100, 100, 700])
        for seconds[0], done in ((0, 0), (60, 1), (120, 2), (180, 3)):
            tell(done)
    assert "3/4" in last_shown(terminal)
    assert "0:07:00" in last_shown(terminal)


def test_a_bar_of_a_stage_that_begins_anew_does_too(
    seconds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = terminal_for(monkeypatch)
    with Bars() as shown:
        for seconds[0], done in ((0, 0), (10, 2), (20, 4), (30, 0), (90, 1), (150, 2)):
            shown.update("scoring", done, 4)
    assert "2/4" in last_shown(terminal)
    assert "0:02:00" in last_shown(terminal)


def test_hostile_names_steer_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_for(monkeypatch)
    with Bars() as shown:
        shown.update("\x1b]0;stage\x07", 3, 4)
        shown.say("\x1b]0;line\x07")
    for what in ("stage", "line"):
        assert f"\\x1b]0;{what}\\x07" in terminal.getvalue()
    assert "\x1b]" not in terminal.getvalue()


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_for(monkeypatch)
    with Bars({"write": "writing [weights]"}, in_bytes=("write",)) as shown:
        shown.update("probes", 3, 4)
        shown.update("write", 3_000_000, 4_000_000)
        shown.say("so far so [good]")
    assert "3/4" in terminal.getvalue()
    assert "writing [weights]" in terminal.getvalue()
    assert "3.0 MB/4.0 MB" in terminal.getvalue()
    assert "so far so [good]" in terminal.getvalue()
    assert "siren: probes" not in terminal.getvalue()
