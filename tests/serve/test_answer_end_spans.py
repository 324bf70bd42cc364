"""In front of a model server: when spans of a prompt and of an answer's end are judged."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from proxied import Proxies, ask, said
from siren_runtime.serving.asynchronous import AsyncStream
from siren_runtime.streaming.result import StreamResult
from tiny_bundle import HARM, edit_manifest, make_alarm
from upstream import ModelServer, Script
from waiting import eventually

pytestmark = pytest.mark.filterwarnings("ignore:.*re-encodes its text")


@pytest.fixture(scope="module")
def spanned(upstream: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxies]:
    """Proxies whose guard goes by the share of z in spans of 8 tokens alone."""
    bundle = make_alarm(tmp_path_factory.mktemp("alarm") / "bundle", 8)
    spans = {"threshold": 1.0, "spans": [{"tokens": 8, "threshold": 0.99}]}
    edit_manifest(bundle, lambda manifest: manifest.update(spans))
    with ExitStack() as stack:
        yield Proxies(bundle, upstream, stack)


@pytest.mark.parametrize(("end", "reason"), [(HARM * 6, "content_filter"), ("a" * 6, "stop")])
def test_a_last_sentence_without_a_mark_is_judged_at_the_end(
    spanned: Proxies, upstream: ModelServer, end: str, reason: str
) -> None:
    """Till then it is no span: what comes next might belong to it."""
    upstream.script = Script([(0, "aaaa aaa. "), (0, end), (0, None)])
    assert said(ask(spanned(), "a", stream=True))[1] == reason


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pieces whose verdict streams have given."""
    found: list[str] = []
    feed = AsyncStream.feed

    async def noted(stream: AsyncStream, text: str, **options: bool) -> StreamResult:
        result = await feed(stream, text, **options)
        found.append(text)
        return result

    monkeypatch.setattr(AsyncStream, "feed", noted)
    return found


def test_a_prompt_with_spans_is_read_while_the_upstream_works(
    spanned: Proxies, upstream: ModelServer, fed: list[str]
) -> None:
    """A guard that reads text anew keeps the scores of the prompt's spans."""
    upstream.script = Script([(0, "fine. "), (0, None)], until=threading.Event())
    assert upstream.script.until is not None
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(lambda: said(ask(spanned(), "a b c. " * 4, stream=True)))
        try:
            eventually(lambda: fed == [""])
        finally:
            upstream.script.until.set()
        assert asking.result() == ("fine. ", "stop")
    assert len(fed) > 1


def test_a_prompt_without_spans_is_read_with_the_answer(
    spanned: Proxies, upstream: ModelServer, fed: list[str]
) -> None:
    upstream.script = Script([(0, "fine. "), (0, None)])
    assert said(ask(spanned(), "a b c", stream=True)) == ("fine. ", "stop")
    assert fed[0] == "fine. "
