"""The page at `/` where something is begun before what was under way has ended."""

from collections.abc import Callable, Iterator

import pytest

from browser import CHROMIUM, Tab, browser_tab, open_page
from proxied import Proxies
from served import Running
from siren_runtime import Guard
from upstream import ModelServer, Script
from waiting import WAIT_S, eventually

Leave = Callable[[Tab], object]

_MODELS = {"object": "list", "data": [{"id": "small", "object": "model"}]}
_OPENED = {"model": "tiny"}  # what opens a stream
_IS_FREE = "$('stop').disabled && !$('play').disabled && !$('ask').disabled"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with browser_tab(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture
def tab(browser: Tab) -> Iterator[Tab]:
    """A tab in which nothing goes wrong, and nothing is told as an error."""
    browser.events.clear()
    yield browser
    assert browser.errors() == []
    assert browser.evaluate("$('error').hidden")


def _stop(tab: Tab) -> None:
    tab.evaluate("$('stop').click()")


def _escape(tab: Tab) -> None:
    tab.press("Escape")


def _type_a_prompt(tab: Tab) -> None:
    tab.type("prompt", "a")


def _type_a_text(tab: Tab) -> None:
    tab.type("text", "c d e")


def _choose_another_guard(tab: Tab) -> None:
    tab.evaluate("$('guard').value = 'other'; $('guard').dispatchEvent(new Event('change'))")


def test_text_that_grows_while_it_is_read_is_read_once(
    tab: Tab, server: Running, guard: Guard
) -> None:
    open_page(tab, server.url)
    tab.type("text", "a b")
    tab.wait_for("!!whole")
    with server.held():
        tab.type("text", "a b c d")
        tab.wait_for_sent({"text": " c"})
        tab.evaluate("fail(new Error('it goes when reading begins'))")
        tab.type("text", "a b c d e f")
        tab.wait_for("$('error').hidden")
    tab.wait_for("!!whole")
    assert tab.sent() == [
        _OPENED,
        *({"text": piece} for piece in ["a", " b", " c", " d", " e", " f"]),
    ]
    assert tab.evaluate("$('words').textContent") == "a b c d e f"
    assert tab.evaluate("$('score').textContent") == f"{guard.score('a b c d e f').score:.3f}"


def test_text_that_shrinks_while_it_is_read_is_shown_as_it_is(tab: Tab, server: Running) -> None:
    open_page(tab, server.url)
    tab.type("text", "a b")
    tab.wait_for("!!whole")
    with server.held():
        tab.type("text", "a b c d")
        tab.wait_for_sent({"text": " c"})
        tab.evaluate("fail(new Error('it goes when reading begins'))")
        tab.type("text", "a b c")
        tab.wait_for("$('error').hidden")
    tab.wait_for("!!whole")
    assert tab.evaluate("$('words').textContent") == "a b c"


@pytest.mark.parametrize(
    "leave", [_stop, _escape, _type_a_prompt, _type_a_text, _choose_another_guard]
)
def test_what_is_watched_is_left_at_once_and_can_be_watched_again(
    tab: Tab, server: Running, leave: Leave
) -> None:
    open_page(tab, server.url)
    tab.type("text", "a b c")
    tab.wait_for("!!whole")
    tab.events.clear()
    with server.held():
        tab.evaluate("$('play').click()")
        tab.wait_for_sent(_OPENED)
        leave(tab)
        tab.wait_for(_IS_FREE)
    tab.evaluate("$('pace').value = 200; $('play').click()")
    tab.wait_for(f"!!whole && {_IS_FREE}")
    assert tab.evaluate("$('words').textContent") == tab.evaluate("$('text').value")


def test_escape_ends_only_what_is_watched(tab: Tab, server: Running) -> None:
    open_page(tab, server.url)
    with server.held():
        tab.type("text", "a b")
        tab.wait_for_sent(_OPENED)
        tab.press("Escape")
    tab.wait_for("!!whole")
    assert tab.evaluate("$('words').textContent") == "a b"


def test_of_streams_that_are_opened_at_once_the_last_one_stays(tab: Tab, server: Running) -> None:
    open_page(tab, server.url)
    tab.evaluate("read('a'); read('b'); read('c d'); 0")
    tab.wait_for("!!whole")
    assert tab.sent() == [_OPENED, {"text": "c"}, {"text": " d"}]
    assert tab.evaluate("$('words').textContent") == "c d"
    eventually(lambda: server.metric('siren_streams{guard="tiny"}') == 1)


def test_a_stream_is_of_the_guard_that_it_was_opened_for(tab: Tab, server: Running) -> None:
    open_page(tab, server.url)
    with server.held():
        tab.type("text", "a")
        tab.wait_for_sent(_OPENED)
        tab.evaluate("$('guard').value = 'other'")
    tab.wait_for("!!whole")
    tab.evaluate("$('guard').dispatchEvent(new Event('change'))")
    tab.wait_for_sent({"model": "other"})


def test_a_verdict_does_not_stay_when_its_text_has_gone(tab: Tab, server: Running) -> None:
    open_page(tab, server.url)
    tab.type("text", "a")
    tab.wait_for("!!whole")
    tab.events.clear()
    with server.held():
        tab.type("text", "b c")
        tab.wait_for_sent(_OPENED)
        assert tab.evaluate("$('verdict').textContent") == "no text yet"
        assert tab.evaluate("$('words').textContent") == "b c"
    tab.wait_for("!!whole")


@pytest.mark.parametrize("leave", [_stop, _type_a_text])
@pytest.mark.parametrize("said", [0, 1])
def test_a_model_that_says_nothing_more_is_left(
    tab: Tab,
    proxies: Proxies,
    upstream: ModelServer,
    letters: tuple[str, str],
    said: int,
    leave: Leave,
) -> None:
    upstream.script = Script([(0, letters[0])] * said, hang=True, whole=_MODELS)
    upstream.asked.clear()
    open_page(tab, proxies().url)
    tab.type("prompt", letters[0] * 4)
    tab.evaluate("$('ask').click()")
    tab.wait_for(f"pieces.length === {said}")
    eventually(lambda: upstream.asked and upstream.last.path == "/v1/chat/completions")
    leave(tab)
    tab.wait_for(_IS_FREE)
    assert upstream.last.gone.wait(WAIT_S)
    if leave is _type_a_text:
        tab.wait_for("!!whole")
    shown = letters[0] * said if leave is _stop else "c d e"
    assert tab.evaluate("[$('text').value, $('words').textContent]") == [shown, shown]
