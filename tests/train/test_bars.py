"""How far long work is, in a terminal and in a log."""

import io
import sys

import pytest

from siren_train.commands import bars
from siren_train.commands.bars import Bars

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


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Bars() as shown:
        shown.update("probes", 3, 4)
    assert "3/4" in terminal.getvalue()
    assert "siren: probes" not in terminal.getvalue()
