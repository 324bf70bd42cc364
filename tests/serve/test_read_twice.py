"""In front of a model server: what two streams of the guard read of an answer counts once."""

from typing import Any

import pytest
from openai import APIError

from proxied import Proxies, ask, said
from siren_runtime import Guard
from siren_runtime.serving.asynchronous import AsyncStream
from upstream import ModelServer, Script

pytestmark = pytest.mark.filterwarnings("ignore:.*re-encodes its text")

# JSON with an escape, which is read as it is and as who parses it reads it.
BEGUN, WORDS = '{"a": "\\n', [f" {letter}{letter}" for letter in "bcdefghijklm"]


def test_a_text_is_held_back_by_its_own_tokens(
    proxies: Proxies, upstream: ModelServer, guard: Guard
) -> None:
    pieces, holdback = [BEGUN, *WORDS], 12
    with guard.stream("ask") as stream:
        tokens = [stream.feed(piece).tokens for piece in pieces]
    out = [p for p, n in zip(pieces, tokens, strict=True) if n + holdback <= tokens[-1]]
    assert 0 < len(out) < len(pieces) - 1
    upstream.script = Script([(0, piece) for piece in pieces], breaks=True)
    came = []
    with pytest.raises(APIError):  # what is held then does not come
        came.extend(ask(proxies(mode="log", holdback=holdback), "ask", stream=True))
    assert said(came)[0] == "".join(out)


def test_a_text_is_gathered_by_its_own_characters(
    proxies: Proxies, upstream: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed, feed = dict[AsyncStream, list[str]](), AsyncStream.feed

    async def noted(self: AsyncStream, text: str, **options: Any) -> Any:
        fed.setdefault(self, []).extend([text] if text else [])
        return await feed(self, text, **options)

    monkeypatch.setattr(AsyncStream, "feed", noted)
    pieces = [BEGUN, *WORDS, '"}']
    upstream.script = Script([*((0, p) for p in pieces), (0, None)], cuts=[1 << 20])  # no pause
    found = list(ask(proxies(mode="log", stride=9), "ask", stream=True))
    assert said(found) == ("".join(pieces), "stop")
    as_it_is, as_parsed = fed.values()
    together = ["".join(WORDS[place : place + 3]) for place in range(0, len(WORDS), 3)]
    assert as_it_is == [BEGUN, *together, '"}']
    assert as_parsed == ['{"a": "\n', *together, '"}']
