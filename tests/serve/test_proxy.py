"""In front of a model server: what goes out was read, and what is harmful does not go out."""

import json
import string
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from openai import (
    BadRequestError,
)

from proxied import Proxies, ask, client, said, verdicts
from served import eventually, running
from siren_runtime import Guard
from siren_runtime.serving.asynchronous import AsyncStream
from siren_serve.proxy.events import EventDecoder
from siren_serve.settings import ProxySettings
from texts import CORPUS
from tiny_bundle import edit_manifest, make_bundle
from upstream import CHUNK, ModelServer, Script, chat_of

ROUNDING = 1e-6
KEY = "a key of sixteen characters and more"

pytestmark = pytest.mark.filterwarnings("ignore:.*re-encodes its text")

TEXTS = [text for text in CORPUS if 8 < len(text) < 200]


@st.composite
def answers(draw: Any) -> list[str]:
    """A text of the corpus, cut anywhere."""
    text = draw(st.sampled_from(TEXTS))[:60]
    cuts = sorted(draw(st.sets(st.integers(1, len(text) - 1), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


SOME = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
CUTS = st.lists(st.integers(1, 300), max_size=4)


@SOME
@given(pieces=answers(), cuts=CUTS)
@example(pieces=["a\u2028b", "\x85c", "👍🏽"], cuts=[1])
def test_verdicts_are_those_of_a_stream_of_the_guard_however_bytes_are_cut(
    proxies: Proxies, upstream: ModelServer, guard: Guard, pieces: list[str], cuts: list[int]
) -> None:
    upstream.script = Script([(0, {"role": "assistant", "content": ""})], cuts=cuts)
    upstream.script.deltas = [*upstream.script.deltas, *((0, p) for p in pieces), (0, None)]
    found = list(ask(proxies(mode="annotate"), "ask", stream=True))
    assert found[0].siren["prompt"]["score"] == pytest.approx(guard.score("ask").score, abs=1e-6)
    assert said(found) == ("".join(pieces), "stop")
    told = [c.choices[0].siren["score"] for c in found if c.choices[0].delta.content]
    assert told == pytest.approx(verdicts(guard, "ask", pieces), abs=ROUNDING)


@SOME
@given(pieces=answers(), cuts=CUTS, holdback=st.sampled_from([0, 5]))
def test_nothing_of_the_piece_that_decides_goes_out(
    proxies: Proxies, upstream: ModelServer, guard: Guard, pieces: list[str], cuts: list[int],
    holdback: int,
) -> None:  # fmt: skip
    upstream.script = Script([*((0, p) for p in pieces), (0, None)], cuts=cuts)
    prompt = min(string.ascii_letters, key=lambda c: guard.score(c).score) * 3
    with guard.stream(prompt) as stream:
        results = [stream.feed(piece) for piece in pieces]
    assume(all(abs(r.score - r.threshold) > 1e-4 for r in results))
    decides = next((n for n, r in enumerate(results) if r.score >= r.threshold), None)
    text, reason = said(ask(proxies(holdback=holdback), prompt, stream=True))
    if decides is None:
        assert (text, reason) == ("".join(pieces), "stop")
    elif not holdback:
        assert (text, reason) == ("".join(pieces[:decides]), "content_filter")
    else:  # what 5 tokens had been read behind
        tokens = [r.tokens for r in results]
        read = tokens[decides - 1] if decides else 0
        out = [p for p, n in zip(pieces[:decides], tokens, strict=False) if n + holdback <= read]
        assert (text, reason) == ("".join(out), "content_filter")


@SOME
@given(size=st.integers(1, 12), line=st.sampled_from(["\n", "\r\n", "\r"]), bom=st.booleans())
def test_events_are_decoded_as_the_standard_says(size: int, line: str, bom: bool) -> None:
    lines = [
        "data: a\u2028\x0bb",
        ":data: no",
        "data:c",
        "id: 7",
        "",
        "",
        "event: x",
        "",
        "data",
        "event: error",
        "",
    ]
    data = ("\ufeff" if bom else "").encode() + "".join(f"{text}{line}" for text in lines).encode()
    decoder = EventDecoder()
    found = [e for at in range(0, len(data), size) for e in decoder.feed(data[at : at + size])]
    assert found == [(b"", "a\u2028\x0bb\nc".encode()), (b"error", b"")]


def test_a_cut_answer_cancels_the_upstreams_request(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    upstream.script = Script([(0, safe), (0, harmful * 60), (0, safe)], hang=True)
    server = proxies()
    before = server.metric('siren_proxied_harmful_total{mode="block",what="answer"}')
    assert said(ask(server, safe * 4, stream=True)) == (safe, "content_filter")
    assert upstream.last.gone.wait(30)
    after = server.metric('siren_proxied_harmful_total{mode="block",what="answer"}')
    assert after == before + 1
    eventually(lambda: server.metric('siren_streams{guard="tiny"}') == 0)


@pytest.mark.parametrize("order", ["beside", "before"])
def test_a_harmful_prompt_gets_no_answer(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], order: str
) -> None:
    safe, harmful = letters
    upstream.script = Script([(0, safe), (0, None)], whole=chat_of({"content": safe}))
    for options in ({}, {"stream": True}):
        with pytest.raises(BadRequestError) as error:
            ask(proxies(prompt=order), harmful * 8, user=order, **options)
        assert error.value.code == "content_filter"
    assert not any(asked.body.get("user") == "before" for asked in upstream.asked)


def test_the_upstream_works_while_the_prompt_is_scored_or_after(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    upstream.script = Script([(0, letters[0]), (0, None)])
    for order, begins in (("beside", True), ("before", False)):
        server, found = proxies(prompt=order), []
        upstream.asked.clear()
        with server.held():
            call = threading.Thread(
                target=lambda s=server, f=found: f.append(said(ask(s, letters[0] * 4, stream=True)))
            )
            call.start()
            if begins:
                eventually(lambda: upstream.asked)
            else:
                time.sleep(0.3)
                assert not upstream.asked
            assert not found  # no verdict, no text
        call.join(30)
        assert found == [(letters[0], "stop")]


def test_annotate_and_log_let_all_through(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    _, harmful = letters
    upstream.script = Script(
        [(0, harmful), (0, harmful), (0, None)], whole=chat_of({"content": harmful * 3})
    )
    annotated = list(ask(proxies(mode="annotate"), harmful * 4, stream=True))
    assert said(annotated) == (harmful * 2, "stop")
    assert annotated[0].siren["prompt"]["is_harmful"] is True
    assert annotated[1].choices[0].siren["is_harmful"] is True
    whole = ask(proxies(mode="annotate"), harmful * 4)
    assert whole.choices[0].message.content == harmful * 3
    assert whole.choices[0].siren["is_harmful"] is True
    assert whole.siren["prompt"]["is_harmful"] is True
    server = proxies(mode="log")
    plain = list(ask(server, harmful * 4, stream=True))
    assert said(plain) == (harmful * 2, "stop")
    assert not plain[0].model_extra
    assert ask(server, harmful * 4).usage.total_tokens == 3
    for what in ("prompt", "answer"):
        line = f'siren_proxied_harmful_total{{mode="log",what="{what}"}}'
        assert server.metric(line) == 2


def test_a_whole_answer_is_scored_behind_its_prompt(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], guard: Guard
) -> None:
    safe, harmful = letters
    upstream.script = Script(whole=chat_of({"content": safe}, {"content": harmful * 9}))
    answer = ask(proxies(), safe * 4, n=2)
    assert [c.message.content for c in answer.choices] == [safe, None]
    assert [c.finish_reason for c in answer.choices] == ["stop", "content_filter"]
    annotated = ask(proxies(mode="annotate"), safe * 4, n=2)
    expected = guard.score(prompt=safe * 4, response=harmful * 9)
    assert annotated.choices[1].siren["score"] == pytest.approx(expected.score, abs=ROUNDING)
    assert annotated.choices[1].siren["tokens"] == expected.tokens


def test_harm_in_the_middle_of_one_large_chunk_is_seen(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    """By its end the mean is harmless again; a stream in small chunks would have stopped."""
    safe, harmful = letters
    chunk = safe * 200 + harmful * 600 + safe * 6000
    upstream.script = Script([(0, safe), (0, chunk), (0, None)])
    text, reason = said(ask(proxies(), safe * 4, stream=True))
    assert (text, reason) == (safe, "content_filter")
    told = list(ask(proxies(mode="annotate"), safe * 4, stream=True))
    assert told[1].choices[0].siren["is_harmful"]
    assert said(told) == (safe + chunk, "stop")


def test_each_of_several_choices_is_cut_by_itself(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    deltas = [(0, safe), (1, safe), (1, harmful * 60), (0, safe), (1, safe), (0, None), (1, None)]
    upstream.script = Script(deltas, tail=[{**CHUNK, "choices": [], "usage": {"total_tokens": 7}}])
    found = list(ask(proxies(), safe * 4, stream=True, n=2))
    assert said(found, 0) == (safe * 2, "stop")
    assert said(found, 1) == (safe, "content_filter")
    assert found[-1].usage.total_tokens == 7


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "TEXT"},
        {"reasoning": "TEXT"},
        {"refusal": "TEXT"},
        {"a key of tomorrow": ["TEXT"]},
        {"function_call": {"name": "f", "arguments": "TEXT"}},
        {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "TEXT"}}]},
        {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": ["TEXT"]}}]},
        {"tool_calls": [{"index": 0, "custom": {"name": "f", "input": "TEXT"}}]},
        {"content": [{"type": "text", "text": "TEXT"}]},
    ],
)
def test_all_that_a_model_writes_is_read(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], delta: dict[str, Any]
) -> None:
    safe, harmful = letters
    filled = json.loads(json.dumps(delta).replace("TEXT", harmful * 60))
    upstream.script = Script([(0, safe), (0, filled)], hang=True, whole=chat_of(filled))
    found = list(ask(proxies(), safe * 4, stream=True))
    assert said(found) == (safe, "content_filter")
    assert harmful * 9 not in str(found)
    whole = ask(proxies(), safe * 4)
    assert whole.choices[0].finish_reason == "content_filter"
    assert harmful * 9 not in whole.model_dump_json()


def test_a_new_text_of_a_choice_begins_a_line(
    proxies: Proxies, upstream: ModelServer, guard: Guard
) -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": "{"}}
    more = {"index": 0, "function": {"arguments": "}"}}
    deltas = [{"reasoning": "th"}, {"reasoning": "ink"}, "say", {"tool_calls": [call]}]
    upstream.script = Script([(0, d) for d in [*deltas, {"tool_calls": [more]}, None]])
    found = list(ask(proxies(mode="annotate"), "ask", stream=True))
    told = [c.choices[0].siren["score"] for c in found]
    pieces = ["th", "ink", "\nsay", "\nf\n{", "}"]
    assert told[:5] == pytest.approx(verdicts(guard, "ask", pieces), abs=ROUNDING)


def test_a_text_is_read_by_itself_whatever_comes_between_its_pieces(
    proxies: Proxies, upstream: ModelServer, guard: Guard, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    deltas = [{"content": safe * 9, "reasoning": harmful * 2}] * 30
    upstream.script = Script([*((0, each) for each in deltas), (0, None)])
    assert said(ask(proxies(), safe * 4, stream=True))[1] == "content_filter"
    told = list(ask(proxies(mode="annotate"), safe * 4, stream=True))
    expected = guard.score(prompt=safe * 4, response=harmful * 60).score
    assert told[-2].choices[0].siren["score"] == pytest.approx(expected, abs=ROUNDING)
    assert said(told) == (safe * 270, "stop")
    held = list(ask(proxies(mode="log", holdback=5), safe * 4, stream=True))
    assert said(held) == (safe * 270, "stop")


def test_a_stream_is_told_where_its_text_ends(
    proxies: Proxies,
    upstream: ModelServer,
    letters: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fed, feed = [], AsyncStream.feed

    async def noted(self: AsyncStream, text: str, *, last: bool = False) -> Any:
        fed.append((text, last))
        return await feed(self, text, last=last)

    monkeypatch.setattr(AsyncStream, "feed", noted)
    safe = letters[0]
    stop = {**CHUNK, "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}
    for tail, ends in (([], [(safe, False), ("", True)]), ([stop], [(safe, False), ("a", True)])):
        fed.clear()
        upstream.script = Script([(0, safe), *([] if tail else [(0, None)])], tail=tail)
        assert said(ask(proxies(), safe, stream=True))[1] == "stop"
        assert fed == ends


def test_a_text_under_two_keys_has_the_verdicts_of_one(
    proxies: Proxies, upstream: ModelServer, guard: Guard
) -> None:
    def both(text: str) -> dict[str, Any]:
        detail = {"type": "reasoning.text", "text": text, "format": "anthropic-claude-v1"}
        return {"reasoning": text, "reasoning_details": [{**detail, "index": 0}]}

    pieces = ["Th", "ink of", " it"]
    upstream.script = Script([*((0, both(piece)) for piece in pieces), (0, None)])
    told = list(ask(proxies(mode="annotate"), "ask", stream=True))
    scores = [chunk.choices[0].siren["score"] for chunk in told[:3]]
    assert scores == pytest.approx(verdicts(guard, "ask", pieces), abs=ROUNDING)


@pytest.mark.parametrize("key", ["content", "arguments"])
def test_what_json_hides_by_escapes_is_read(
    proxies: Proxies,
    upstream: ModelServer,
    guard: Guard,
    letters: tuple[str, str],
    key: str,
) -> None:
    safe, harmful = letters
    written = '{"a": "' + f"\\u{ord(harmful):04x}" * 99 + '"}'
    assert not guard.score(prompt=safe * 4, response=written).is_harmful
    call = {"index": 0, "function": {"name": "f", "arguments": written}}
    said_ = {"content": written} if key == "content" else {"tool_calls": [call]}
    upstream.script = Script([(0, said_), (0, None)], whole=chat_of(said_))
    assert said(ask(proxies(), safe * 4, stream=True)) == ("", "content_filter")
    assert ask(proxies(), safe * 4).choices[0].finish_reason == "content_filter"


def test_an_answer_without_a_prompt_goes_by_the_thresholds_of_responses(
    upstream: ModelServer, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    responses = {"threshold": 0.001, "tiers": []}
    edit_manifest(bundle, lambda manifest: manifest.update(threshold=0.999, responses=responses))
    proxy = ProxySettings(upstream=upstream.url, stride=0)
    upstream.script = Script([(0, "a"), (0, None)], whole={"choices": [{"index": 0, "text": "a"}]})
    with running({"tiny": str(bundle)}, proxy=proxy) as server:
        openai = client(server)
        for prompt in ("", "x"):
            whole = openai.completions.create(model="m", prompt=prompt).choices[0]
            assert (whole.text, whole.finish_reason) == ("", "content_filter")
            chunks = list(openai.completions.create(model="m", prompt=prompt, stream=True))
            assert "".join(chunk.choices[0].text for chunk in chunks) == ""
            assert chunks[-1].choices[0].finish_reason == "content_filter"


def test_completions_are_read_behind_the_prompt_that_each_goes_on_with(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], guard: Guard
) -> None:
    safe, harmful = letters
    openai = client(proxies())
    upstream.script = Script([(0, safe), (1, harmful * 60), (0, None)])
    chunks = list(openai.completions.create(model="m", prompt=[safe, safe], stream=True))
    ends = {c.choices[0].index: c.choices[0].finish_reason for c in chunks}
    assert ends == {0: "stop", 1: "content_filter"}
    assert "".join(c.choices[0].text for c in chunks) == safe
    said_ = [{"index": n, "text": t, "finish_reason": "stop"} for n, t in enumerate("aaaa")]
    upstream.script = Script(whole={**CHUNK, "object": "text_completion", "choices": said_})
    annotating = client(proxies(mode="annotate"))
    whole = annotating.completions.create(model="m", prompt=["x", "yy"], n=2, suffix="z")
    expected = [
        guard.score(prompt=p, response="a").score for p in ("x\nz", "x\nz", "yy\nz", "yy\nz")
    ]
    assert [c.siren["score"] for c in whole.choices] == pytest.approx(expected, abs=ROUNDING)
    with pytest.raises(Exception, match="token ids"):
        openai.completions.create(model="m", prompt=[1, 2])


def test_a_stride_gathers_text_and_a_pause_ends_it(
    proxies: Proxies, upstream: ModelServer, guard: Guard
) -> None:
    server, pieces = proxies(mode="annotate", stride=6), list("abcdefghijklmnop")
    upstream.script = Script([*((0, p) for p in pieces), (0, None)])
    found = list(ask(server, "ask", stream=True))
    assert said(found) == ("".join(pieces), "stop")
    told = list(dict.fromkeys(c.choices[0].siren["score"] for c in found))
    assert told == pytest.approx(
        verdicts(guard, "ask", ["a", "bcdefg", "hijklm", "nop"]), abs=ROUNDING
    )
    upstream.script = Script([(0, "a"), (0, "b")], hang=True)
    with ask(server, "ask", stream=True) as chunks:
        assert [next(chunks).choices[0].delta.content for _ in "ab"] == ["a", "b"]
