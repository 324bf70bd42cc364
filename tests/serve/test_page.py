"""The page at `/`, in a real browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from browser import CHROMIUM, Tab, browser_tab, open_page
from served import Running, running
from siren_runtime import Guard
from tiny_bundle import edit_manifest, make_alarm, make_bundle

_LAST = "document.getElementById('verdict').textContent"
_DONE = f"!/far|no/.test({_LAST})"  # the whole text was scored


def test_the_page_is_whole_in_itself(server: Running) -> None:
    answer = server.client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    outside = re.findall(r"""(?:src|href)=|url\(|@import|https?://[^"'\s<]*""", answer.text)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with browser_tab(tmp_path / "profile") as opened:
        yield opened


def test_typing_shows_the_score_of_every_beginning(
    tab: Tab, server: Running, guard: Guard, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    text = f"{safe} {safe} {harmful} {harmful} {harmful}"
    open_page(tab, server.url)
    tab.type("text", text)
    tab.wait_for(
        f"document.querySelectorAll('#words span').length === 5 && !/far|no/.test({_LAST})"
    )
    found = tab.evaluate("pieces.map((piece) => piece.score)")
    expected = [guard.score(text[: 2 * n + 1]).score for n in range(5)]
    assert found == pytest.approx(expected, abs=1e-4)
    whole = guard.score(text)
    assert tab.evaluate(_LAST).startswith("harmful" if whole.is_harmful else "safe")
    assert tab.evaluate("document.getElementById('score').textContent") == f"{whole.score:.3f}"
    over = tab.evaluate("[...document.querySelectorAll('.over')].length")
    assert over == sum(score >= guard.default_threshold for score in expected)
    assert tab.picture().startswith(b"\x89PNG")
    assert tab.asked_hosts() == {urlsplit(server.url).netloc}
    assert tab.errors() == []


def test_a_moved_threshold_moves_the_verdict(
    tab: Tab, server: Running, letters: tuple[str, str]
) -> None:
    open_page(tab, server.url)
    tab.type("text", letters[0])
    tab.wait_for(f"{_LAST} === 'safe'")
    move_threshold(tab, 0)
    tab.wait_for(f"{_LAST} === 'harmful'")
    tab.evaluate("document.querySelector('#tiers button').click()")
    tab.wait_for(f"{_LAST} === 'safe'")


def move_threshold(tab: Tab, at: float) -> None:
    slider = "document.getElementById('threshold')"
    tab.evaluate(f"{slider}.value = {at}; {slider}.dispatchEvent(new Event('input'))")


@pytest.mark.filterwarnings("ignore:.*re-encodes its text")
def test_by_a_moved_threshold_the_verdict_is_the_guards_and_a_stream_has_its_own(
    tab: Tab, tmp_path: Path
) -> None:
    bundle = make_alarm(tmp_path / "bundle", 8)
    own = {"threshold": 0.98, "spans": [{"tokens": 8, "threshold": 0.99}]}
    edit_manifest(bundle, lambda manifest: manifest.update(own))
    text, at = "aaaa aaa. zzzzzz. aaaa aaa.", 0.96
    with Guard.load(bundle, threads=1) as guard:
        whole = guard.score(text, threshold=at, spans=True)
        assert whole.is_harmful
        assert whole.score < at  # so by a span
        assert guard.score(text, threshold=0.995, spans=True).is_harmful is False
    with running({"tiny": str(bundle)}) as server:
        open_page(tab, server.url)
        tab.type("text", text)
        tab.wait_for(_DONE)
        for threshold, verdict in ((at, "harmful, by a part of it"), (0.995, "safe")):
            move_threshold(tab, threshold)
            tab.wait_for(f"whole.threshold === {threshold} && {_LAST} === '{verdict}'")
        tab.type("text", f"{text} aaa")  # a stream that is opened anew has the threshold too
        tab.wait_for("!!whole && pieces.length === 6")
        assert tab.evaluate("pieces.every((piece) => piece.threshold === 0.995)")
        move_threshold(tab, at)
        tab.evaluate("document.getElementById('play').click()")
        tab.wait_for("!whole && pieces.length === 3")
        tab.press("Escape")
        tab.wait_for("document.getElementById('stop').disabled")
        move_threshold(tab, 0.995)
        assert tab.evaluate(_LAST) == "harmful so far, by a part of it, by the threshold 0.960"
        assert tab.errors() == []


def test_an_answer_is_shown_by_the_thresholds_of_responses(tab: Tab, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    responses = {"threshold": 0.001, "tiers": []}
    edit_manifest(bundle, lambda manifest: manifest.update(threshold=0.999, responses=responses))
    shown = "[$('verdict').textContent, $('at').textContent, $('tiers').textContent]"
    with running({"tiny": str(bundle)}) as server:
        open_page(tab, server.url)
        tab.type("text", "b")
        tab.wait_for(_DONE)
        assert tab.evaluate(shown) == ["safe", "0.999", "the bundle’s 0.999"]
        assert tab.evaluate("document.querySelectorAll('.over').length") == 0
        tab.type("prompt", "a")
        tab.wait_for(f"{_LAST} === 'harmful'")
        assert tab.evaluate(shown) == ["harmful", "0.001", "the bundle’s 0.001"]
        assert tab.evaluate("document.querySelectorAll('.over').length") == 1
        assert "word 1 of 1" in tab.evaluate("$('facts').textContent")
        assert tab.errors() == []


def test_arrow_keys_choose_a_word_and_a_stream_can_be_stopped(tab: Tab, server: Running) -> None:
    open_page(tab, server.url)
    tab.type("text", "a b c d e f g h")
    tab.wait_for(_DONE)
    tab.evaluate("document.getElementById('words').focus()")
    tab.press("ArrowRight")
    assert "“a”" in tab.evaluate("document.getElementById('chosen').textContent")
    tab.evaluate("document.getElementById('play').click()")
    tab.wait_for("pieces.length === 2")
    tab.press("Escape")
    tab.wait_for("document.getElementById('stop').disabled")
    assert tab.evaluate("pieces.length") < 8


def test_a_key_is_asked_for_and_opens_streams(tab: Tab, bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-that-is-long-enough\n")
    keys.chmod(0o600)
    with running({"tiny": str(bundle)}, keys_file=keys) as server:
        tab.send("Page.navigate", url=server.url)
        tab.wait_for("document.getElementById('keyed')?.hidden === false")
        key = json.dumps("a-key-that-is-long-enough")
        tab.evaluate(f"$('key').value = {key}; $('key').dispatchEvent(new Event('change'))")
        tab.wait_for("!!info")
        tab.type("text", "a b")
        tab.wait_for(_DONE)
        assert tab.evaluate("document.getElementById('error').hidden")
