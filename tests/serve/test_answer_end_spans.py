"""In front of a model server: the last sentence of an answer has a verdict when the answer ends."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from proxied import Proxies, ask, said
from tiny_bundle import HARM, edit_manifest, make_alarm
from upstream import ModelServer, Script

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
