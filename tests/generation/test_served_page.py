"""The page of siren serve --generate, where the guard cuts the answer."""

from pathlib import Path

import pytest

from browser import CHROMIUM, browser_tab, open_page
from served import running
from siren_runtime import GuardedGenerator
from siren_serve.settings import GenerateSettings
from tiny_bundle import make_bundle
from waiting import eventually

PROMPT = "The history of bread begins"
TOKENS = 12


def test_an_answer_that_is_cut_is_shown_as_cut(
    grafted: Path, guarded: GuardedGenerator, tmp_path: Path
) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    peak = max(piece.score for piece in guarded.generate(PROMPT, max_tokens=TOKENS, threshold=1.0))
    cut = guarded.generate(PROMPT, max_tokens=TOKENS, threshold=peak)
    left = "".join(piece.text for piece in cut)
    assert cut.finish == "harmful"
    settings = GenerateSettings(folder=str(grafted), name="tiny", threshold=peak, max_tokens=TOKENS)
    with running({}, generate=settings) as server, browser_tab(tmp_path / "profile") as tab:
        open_page(tab, server.url)
        tab.type("prompt", PROMPT)
        tab.evaluate("$('ask').click()")
        tab.wait_for("cut && $('stop').disabled")
        assert tab.evaluate("$('text').value") == left
        shown = tab.evaluate("$('words').textContent")
        assert shown == left + "the guard cut the answer here"
        assert tab.evaluate("$('verdict').textContent") == "cut by the guard"
        assert tab.evaluate("$('score').textContent") == f"{cut.result.score:.3f}"
        assert "the next word, which did not come out" in tab.evaluate("$('facts').textContent")
        tab.evaluate("$('ask').click()")
        assert not tab.evaluate("cut")
        assert tab.errors() == []


def test_an_answer_is_not_mixed_with_a_text_that_is_read(grafted: Path, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    settings = GenerateSettings(folder=str(grafted), name="tiny", threshold=1.0, max_tokens=TOKENS)
    guards = {"guard": str(make_bundle(tmp_path / "bundle"))}
    with running(guards, generate=settings) as server, browser_tab(tmp_path / "profile") as tab:
        open_page(tab, server.url)
        with server.held():
            tab.type("text", "a b")
            tab.wait_for_sent({"model": "guard"})
            tab.type("prompt", PROMPT)
            tab.evaluate("$('ask').click()")
            tab.wait_for("!!whole && $('stop').disabled")
        eventually(lambda: server.metric('siren_streams{guard="guard"}') == 0)
        assert tab.evaluate("whole && pieces.map((piece) => piece.text).join('')")
        assert tab.evaluate("$('text').value === $('words').textContent")
        assert tab.errors() == []
