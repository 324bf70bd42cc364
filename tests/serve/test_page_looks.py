"""The page at `/` for who reads it in the dark, has no pointer, or gets an answer that was cut."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from browser import CHROMIUM, Tab, browser_tab, open_page
from proxied import Proxies
from served import Running, running
from tiny_bundle import edit_manifest, make_bundle
from upstream import ModelServer, Script

# Of each element with text of its own: what it is, its colour, and the colours that lie behind it.
_PAINTED = """
[...document.querySelectorAll("body *")].filter((element) => {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const field = element.matches("textarea, input, select");
  return (own || field) && element.getClientRects().length && !element.disabled
    && !element.matches("script, option, input[type=range]");
}).map((element) => {
  const behind = [];
  for (let one = element; one; one = one.parentElement) {
    behind.push(getComputedStyle(one).backgroundColor);
  }
  const name = `${element.localName} ${element.id} ${element.className}`.trim();
  return [name, getComputedStyle(element).color, behind];
})
"""
_MODELS = {"object": "list", "data": [{"id": "small", "object": "model"}]}
_AA = 4.5  # https://www.w3.org/TR/WCAG22/#contrast-minimum


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with browser_tab(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def tiered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose guard has tiers."""
    bundle = make_bundle(tmp_path_factory.mktemp("tiered") / "bundle", scale=2.0)
    tiers = [{"name": "block", "threshold": 0.9}, {"name": "review", "threshold": 0.6}]
    edit_manifest(bundle, lambda manifest: manifest.update(threshold=0.5, tiers=tiers))
    with running({"tiny": str(bundle)}) as server:
        yield server


def _rgba(color: str) -> list[float]:
    """Red, green, blue and opacity, from 0 to 1, of what a browser computed."""
    *channels, alpha = (*map(float, color[color.index("(") + 1 : -1].split(", ")), 1.0)[:4]
    return [*(channel / 255 for channel in channels), alpha]


def _over(colors: list[str]) -> list[float]:
    """What colours that lie over each other, the uppermost first, come to."""
    found = [1.0, 1.0, 1.0]
    for *channels, alpha in map(_rgba, reversed(colors)):
        found = [alpha * new + (1 - alpha) * old for new, old in zip(channels, found, strict=True)]
    return found


def _luminance(channels: list[float]) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrasts(tab: Tab) -> dict[str, float]:
    """The least contrast of text with what is behind it, by what the text stands in."""
    found: dict[str, float] = {}
    for name, color, behind in tab.evaluate(_PAINTED):
        text, ground = _luminance(_over([color, *behind])), _luminance(_over(behind))
        contrast = (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
        found[name] = min(contrast, found.get(name, contrast))
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable_in_light_and_in_dark(tab: Tab, tiered: Running, scheme: str) -> None:
    wanted = [{"name": "prefers-color-scheme", "value": scheme}]
    tab.send("Emulation.setEmulatedMedia", features=wanted)
    open_page(tab, tiered.url)
    tab.type("text", "a b c d e")
    tab.wait_for("!!whole")
    tab.evaluate("pieces.forEach((piece, place) => { piece.score = place / 4; })")
    tab.evaluate("cut = true; draw($('text').value + ' more'); fail(new Error('an error'))")
    found = _contrasts(tab)
    for at in (0, 1):  # harmful and safe
        tab.evaluate(f"cut = false; moved = {at}; draw($('text').value)")
        found |= {f"{name} from {at}": value for name, value in _contrasts(tab).items()}
    seen = {part for name in found for part in name.split()}
    assert {"tick", "button", "over", "waiting", "cut", "error", "harmful", "safe", "dd"} <= seen
    assert {name: value for name, value in found.items() if value < _AA} == {}
    page = tab.evaluate("[getComputedStyle(document.body).backgroundColor]")
    assert (_luminance(_over(page)) < 0.2) is (scheme == "dark")


def _focused(tab: Tab) -> str:
    """What has the focus, by its id or its text; nothing where that is the page."""
    has = "document.activeElement"
    return str(tab.evaluate(f"{has} === document.body ? '' : {has}.id || {has}.textContent"))


def _go_to(tab: Tab, name: str) -> None:
    """Press the tabulator until something has the focus."""
    for _ in range(20):
        if (focused := _focused(tab)).startswith(name):
            return
        tab.press("Tab")
    pytest.fail(f"the tabulator reaches no {name}, but {focused}")


def test_keys_alone_reach_and_work_everything_and_no_other_host_is_asked(
    tab: Tab, proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe = letters[0]
    upstream.script = Script([(0, f"{safe} "), (0, safe), (0, None)], whole=_MODELS)
    server = proxies()
    tab.events.clear()
    open_page(tab, server.url)
    reached = {}
    for _ in range(20):
        tab.press("Tab")
        outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        reached[_focused(tab)] = outline
    reached.pop("", None)
    tiers = tab.evaluate(
        "[...document.querySelectorAll('#tiers button')].map((one) => one.textContent)"
    )
    fields = {"guard", "prompt", "text", "play", "ask", "pace", "threshold", "words"}
    assert {*reached} == fields | {*tiers}
    assert "none" not in reached.values()

    _go_to(tab, "prompt")
    tab.send("Input.insertText", text=safe * 4)
    _go_to(tab, "ask")
    tab.press("Enter")
    tab.wait_for("!!whole && $('stop').disabled")
    assert tab.evaluate("$('text').value") == f"{safe} {safe}"
    _go_to(tab, "text")
    tab.press("End")
    tab.send("Input.insertText", text=f" {safe}" * 7)
    tab.wait_for("pieces.length === 9 && !!whole")
    _go_to(tab, "threshold")
    shown = (
        "[$('at').textContent, $('verdict').textContent, document.querySelectorAll('.over').length]"
    )
    tab.press("Home")
    tab.wait_for("whole.threshold === 0")  # the guard was asked again
    assert tab.evaluate(shown) == ["0.000", "harmful", 9]
    tab.press("End")
    tab.wait_for("whole.threshold === 1")
    assert tab.evaluate(shown) == ["1.000", "safe", 0]
    _go_to(tab, "the bundle")
    tab.press("Enter")
    tab.wait_for("whole.threshold === 0.5")
    assert tab.evaluate(shown) == ["0.500", "safe", 0]
    _go_to(tab, "words")
    tab.press("ArrowRight")
    assert tab.evaluate("$('chosen').textContent").startswith(f"Word 1, “{safe}”")
    _go_to(tab, "pace")
    tab.send("Input.insertText", text="1")
    tab.press("Enter", control=True)
    tab.wait_for("pieces.length === 1")
    tab.press("Escape")
    tab.wait_for("$('stop').disabled")
    assert tab.evaluate("pieces.length") < 9
    assert tab.asked_hosts() == {urlsplit(server.url).netloc}
    assert tab.errors() == []


@pytest.mark.parametrize("said", [1, 0])
def test_an_answer_that_the_proxy_cuts_is_shown_as_cut(
    tab: Tab, proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], said: int
) -> None:
    safe, harmful = letters
    upstream.script = Script(
        [*((0, safe),) * said, (0, harmful * 60), (0, safe), (0, None)], whole=_MODELS
    )
    open_page(tab, proxies().url)
    tab.type("prompt", safe * 4)
    tab.evaluate("$('ask').click()")
    tab.wait_for("cut && $('stop').disabled")
    assert tab.evaluate("$('text').value") == safe * said
    assert tab.evaluate("$('words').textContent") == safe * said + "the guard cut the answer here"
    verdict = "[$('verdict').textContent, $('verdict').className]"
    assert tab.evaluate(verdict) == ["cut by the guard", "verdict harmful"]
    upstream.script = Script([(0, safe), (0, None)], whole=_MODELS)
    tab.evaluate("$('ask').click()")
    tab.wait_for("!!whole && $('stop').disabled")
    assert tab.evaluate("$('words').textContent") == safe
    assert tab.evaluate(verdict) == ["safe", "verdict safe"]


def test_a_prompt_that_is_blocked_is_told_of(
    tab: Tab, proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    upstream.script = Script([(0, letters[0]), (0, None)], whole=_MODELS)
    open_page(tab, proxies().url)
    tab.type("prompt", letters[1] * 8)
    tab.evaluate("$('ask').click()")
    tab.wait_for("!$('error').hidden && $('stop').disabled")
    assert "blocked as harmful" in tab.evaluate("$('error').textContent")
    assert tab.evaluate("$('text').value") == ""
