"""In front of a model server: what fails lets no text through, and is told as it is."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import (
    APIError,
    APIStatusError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
)

from proxied import Proxies, ask, client, said
from served import Running, eventually, running
from siren_runtime import AsyncGuard, Guard
from siren_serve.guards import Served
from siren_serve.metrics import Metrics
from siren_serve.proxy.answers import StreamedAnswer
from siren_serve.proxy.calls import read_call
from siren_serve.proxy.policy import Policy
from siren_serve.settings import ProxySettings
from upstream import CHUNK, ModelServer, Script, chat_of
from waiting import WAIT_S, left

ROUNDING = 1e-6
KEY = "a key of sixteen characters and more"

pytestmark = pytest.mark.filterwarnings("ignore:.*re-encodes its text")


@pytest.mark.parametrize("fail_open", [False, True])
def test_what_cannot_be_read_goes_out_only_where_that_was_asked_for(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], fail_open: bool
) -> None:
    safe, _ = letters
    server = proxies(fail_open=fail_open)
    picture = {"audio": {"data": "UklGRg=="}}
    upstream.script = Script(
        [(0, safe), (0, picture), (0, safe), (0, None)], whole=chat_of(picture)
    )
    if not fail_open:
        chunks = ask(server, safe, stream=True)
        assert next(chunks).choices[0].delta.content == safe
        with pytest.raises(APIError, match=r"delta\.audio"):
            next(chunks)
        with pytest.raises(InternalServerError, match=r"message\.audio"):
            ask(server, safe)
    else:
        found = list(ask(server, safe, stream=True))
        assert said(found) == (safe * 2, "stop")
        marks = [c.choices[0].siren for c in found[1:] if c.choices]
        assert marks == [{"failed_open": "cannot_be_scored"}] * 3
        assert ask(server, safe).choices[0].siren == marks[0]
    asked = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    body = {"model": "small", "messages": asked}
    upstream.script.whole = chat_of({"content": safe})
    answer = server.client.post("/v1/chat/completions", json=body)
    if fail_open:
        assert answer.json()["siren"] == {"prompt": {"failed_open": "cannot_be_scored"}}
        assert server.metric('siren_failed_open_total{code="cannot_be_scored",what="prompt"}') == 1
    else:
        assert answer.status_code == 422


def test_a_guard_that_fails_in_the_middle_gives_no_more_text(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, _ = letters
    upstream.script = Script([(0, safe), (0, safe * 300_000), (0, safe)], hang=True)
    chunks = ask(proxies(), safe, stream=True)
    assert next(chunks).choices[0].delta.content == safe
    with pytest.raises(APIError, match="bytes"):
        next(chunks)
    assert upstream.last.gone.wait(30)
    upstream.script = Script([(0, safe), (0, safe * 300_000), (0, safe), (0, None)])
    *_, last, _ = ask(proxies(fail_open=True), safe, stream=True)
    assert last.choices[0].delta.content == safe
    assert last.choices[0].siren == {"failed_open": "cannot_be_scored"}


def test_a_guard_that_is_too_slow_gives_no_text(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    upstream.script = Script([(0, letters[0]), (0, None)], whole=chat_of({"content": "a"}))
    server = proxies()
    with server.held():
        for options in ({}, {"stream": True}):
            with pytest.raises(InternalServerError) as error:
                ask(server, letters[0], **options)
            assert error.value.status_code == 504
    assert said(ask(server, letters[0], stream=True)) == (letters[0], "stop")


def test_a_client_that_leaves_ends_the_upstreams_request(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, _ = letters
    server = proxies()
    upstream.script = Script([(0, safe)] * 3, hang=True)
    chunks = ask(server, safe, stream=True)
    assert next(iter(chunks)).choices[0].delta.content == safe
    assert not upstream.last.gone.is_set()
    chunks.close()
    assert upstream.last.gone.wait(30)
    upstream.script = Script(wait_s=60)
    with pytest.raises(Exception, match="timed out"):
        ask(server, safe, timeout=0.5)
    assert upstream.last.gone.wait(30)
    eventually(lambda: server.metric('siren_streams{guard="tiny"}') == 0)
    assert server.metric('siren_proxied_total{outcome="gone"}') >= 2


def test_a_client_that_reads_nothing_of_its_answer_keeps_no_stream(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, _ = letters
    server = proxies(send_timeout_s=0.3)
    large = {"content": safe, "token_ids": [1] * 50_000}
    upstream.script = Script([(0, large)] * 80, hang=True)
    host, _, port = server.url.removeprefix("http://").partition(":")
    body = json.dumps(
        {"model": "m", "stream": True, "messages": [{"role": "user", "content": safe}]}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall((head + body).encode())
        eventually(lambda: server.metric('siren_refusals_total{code="not_read"}') == 1)
        assert upstream.last.gone.wait(30)
        eventually(lambda: server.metric('siren_streams{guard="tiny"}') == 0)
    upstream.script = Script([(0, safe), (0, None)])
    assert said(ask(server, safe, stream=True)) == (safe, "stop")


def test_a_client_that_reads_slowly_gets_all_of_its_answer(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, _ = letters
    server = proxies(send_timeout_s=1.0)
    before = server.metric('siren_refusals_total{code="not_read"}')
    upstream.script = Script(whole=chat_of({"content": safe}))
    upstream.script.whole["choices"][0]["logprobs"] = {"tokens": ["x" * 8_000_000]}
    body = {"model": "m", "messages": [{"role": "user", "content": safe}]}
    narrow = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)])
    read = 0
    with (
        httpx.Client(base_url=server.url, transport=narrow, timeout=WAIT_S) as slow,
        slow.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        for number, part in enumerate(answer.iter_raw()):
            read += len(part)
            if number < 120:
                time.sleep(0.02)
    assert read > 8_000_000
    assert server.metric('siren_refusals_total{code="not_read"}') == before


def test_errors_of_the_upstream_are_told_as_they_are(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], bundle: Path
) -> None:
    safe, server = letters[0], proxies()
    own = {"error": {"message": safe * 9, "type": "t", "code": "rate", "param": None}}
    upstream.script = Script(whole=own, status=429, headers={"retry-after": "7"})
    for options in ({}, {"stream": True}):
        with pytest.raises(RateLimitError, match=safe * 9) as error:
            ask(server, safe, **options)
        assert error.value.response.headers["retry-after"] == "7"
    upstream.script = Script(whole=own, status=503)
    with pytest.raises(InternalServerError, match="status 503") as failed:
        ask(server, safe)
    assert (failed.value.status_code, failed.value.code) == (502, "upstream_failed")
    upstream.script = Script(whole={"choices": "none"})
    with pytest.raises(InternalServerError) as failed:
        ask(server, safe)
    assert failed.value.code == "upstream_not_understood"
    upstream.script = Script([(0, safe)], breaks=True)
    with pytest.raises(APIError, match="upstream failed"):
        list(ask(server, safe, stream=True))
    upstream.script = Script([(0, safe)], ends=True)
    came = []
    with pytest.raises(APIError, match="before its answer did"):
        came.extend(ask(server, safe, stream=True))
    assert said(came) == (safe, None)
    upstream.script = Script([(0, safe), (0, None)], ends=True)
    assert said(ask(server, safe, stream=True)) == (safe, "stop")
    upstream.script = Script([(0, safe)], tail=[own], hang=True)
    with pytest.raises(APIError, match="while it answered"):
        list(ask(server, safe, stream=True))
    upstream.script = Script([(5, safe)], hang=True)
    with pytest.raises(APIError, match="not asked for"):
        list(ask(server, safe, stream=True))
    upstream.script = Script(wait_s=60)
    with pytest.raises(InternalServerError) as failed:
        ask(proxies(timeout_s=0.3), safe)
    assert (failed.value.status_code, failed.value.code) == (504, "upstream_timeout")
    nobody = ProxySettings(upstream="http://127.0.0.1:9/v1")
    with running({"tiny": str(bundle)}, proxy=nobody) as alone:
        with pytest.raises(InternalServerError) as failed:
            ask(alone, safe)
        assert failed.value.code == "upstream_failed"


def test_keys_of_the_proxy_stay_here_and_those_of_the_upstream_go_there(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], tmp_path: Path
) -> None:
    keys, key = tmp_path / "keys", tmp_path / "key"
    keys.write_text(KEY)
    key.write_text("the-upstream's\r\n", encoding="utf-8-sig")
    upstream.script = Script(whole=chat_of({"content": letters[0]}))
    body = {"model": "small", "messages": [{"role": "user", "content": letters[0]}]}

    def sent(server: Running, **headers: str) -> str | None:
        answer = server.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return upstream.last.headers.get("authorization")

    theirs, ours = "Bearer theirs", f"Bearer {KEY}"
    assert sent(proxies(), Authorization=theirs) == theirs
    assert sent(proxies()) is None
    kept = proxies(keys_file=keys)
    assert sent(kept, Authorization=ours) is None
    assert sent(kept, **{"Authorization": theirs, "X-API-Key": KEY}) == theirs
    assert kept.client.post("/v1/chat/completions", json=body).status_code == 401
    own = proxies(key_file=key)
    assert sent(own, Authorization=theirs) == "Bearer the-upstream's"


def test_headers_are_passed_on_as_bytes_and_cookies_are_nobodys(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, server = letters[0], proxies()
    body = {"model": "small", "messages": [{"role": "user", "content": safe}]}
    headers = {b"x-request-id": "ä1".encode("latin-1")}
    for whole, status in ((chat_of({"content": safe}), 200), ({"error": {"message": "no"}}, 400)):
        told = {"set-cookie": "who=the-first; Path=/", "x-request-id": "é2"}
        upstream.script = Script(whole=whole, status=status, headers=told)
        answer = server.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert dict(answer.headers.raw)[b"x-request-id"] == "é2".encode()
        assert "set-cookie" not in answer.headers
        assert "cookie" not in upstream.last.headers


@pytest.mark.parametrize("mode", ["block", "annotate", "log"])
def test_text_beside_the_choices_does_not_go_out(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], mode: str
) -> None:
    safe, harmful = letters
    usage = {
        "total_tokens": 3,
        "note": harmful * 9,
        harmful + " in a key of words": 1,
        "of": [harmful * 9],
    }
    beside: dict[str, Any] = {
        "output_text": harmful,
        "error": None,
        "usage": usage,
        "timings": harmful * 9,
    }
    beside |= {"provider": f"{harmful} and so on, and on", "service_tier": [harmful * 9]}
    upstream.script = Script(
        [(0, safe), (0, None)],
        whole={**chat_of({"content": safe}), **beside},
        tail=[{"id": "1", "choices": [], **beside}],
    )
    body = {"model": "small", "messages": [{"role": "user", "content": safe}]}
    for stream in (False, True):
        path = "/v1/chat/completions"
        answer = proxies(mode=mode).client.post(path, json={**body, "stream": stream})
        assert answer.status_code == 200, answer.text
        assert not any(text in answer.text for text in ("output_text", "key of", "so on"))
        assert harmful * 9 not in answer.text
        assert '"usage":{"total_tokens":3,"of":[]}' in answer.text
        assert ("[DONE]" in answer.text) == stream


def test_answers_that_are_asked_for_are_bounded(proxies: Proxies, letters: tuple[str, str]) -> None:
    for options in ({}, {"stream": True}):
        with pytest.raises(APIStatusError, match="at most 256") as error:
            ask(proxies(fail_open=True), letters[0], n=10**9, **options)
        assert error.value.status_code == 413


def test_alternatives_to_the_answers_tokens_are_refused(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    server, safe = proxies(), letters[0]
    asked = len(upstream.asked)
    with pytest.raises(APIStatusError, match="alternatives to the answer's tokens") as error:
        ask(server, safe, logprobs=True, top_logprobs=3)
    assert error.value.status_code == 422
    body = {"model": "m", "prompt": safe, "logprobs": 2}
    assert server.client.post("/v1/completions", json=body).status_code == 422
    assert len(upstream.asked) == asked
    upstream.script = Script([(0, safe), (0, None)])
    list(ask(server, safe, stream=True, logprobs=True, top_logprobs=0))
    assert len(upstream.asked) == asked + 1
    upstream.script = Script([(0, safe), (0, None)])
    annotating = proxies(mode="annotate")  # lets all through
    list(ask(annotating, safe, stream=True, logprobs=True, top_logprobs=3))
    assert len(upstream.asked) == asked + 2


@pytest.mark.parametrize("mode", ["block", "annotate"])
def test_alternatives_that_come_all_the_same_go_out_only_where_all_text_does(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], mode: str
) -> None:
    safe, harmful = letters
    token = {"token": safe, "logprob": -0.1, "top_logprobs": [{"token": harmful, "logprob": -2.0}]}
    logprobs = {"content": [token], "refusal": None}
    choice = {"index": 0, "delta": {"content": safe}, "logprobs": logprobs}
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    upstream.script = Script(tail=[{**CHUNK, "choices": [each]} for each in (choice, last)])
    server, asked = proxies(mode=mode), {"extra_body": {"n_probs": 1}, "logprobs": True}
    first = next(iter(ask(server, safe, stream=True, **asked)))
    upstream.script.whole = chat_of({"content": safe})
    upstream.script.whole["choices"][0]["logprobs"] = logprobs
    for answered in (first, ask(server, safe, **asked)):
        (found,) = answered.choices[0].logprobs.content
        alternatives = [harmful] if mode == "annotate" else []
        assert (found.token, [each.token for each in found.top_logprobs]) == (safe, alternatives)


def test_models_are_the_upstreams_and_other_routes_are_refused_by_name(
    proxies: Proxies, upstream: ModelServer
) -> None:
    upstream.script = Script(whole={"object": "list", "data": [{"id": "a/b", "object": "model"}]})
    server = proxies()
    assert [model.id for model in client(server).models.list()] == ["a/b"]
    upstream.script = Script(whole={"id": "a/b", "object": "model"})
    assert client(server).models.retrieve("a/b").id == "a/b"
    assert upstream.last.path == "/v1/models/a/b"
    assert server.client.get("/v1/models/a%3Fb").status_code == 200
    assert upstream.last.path == "/v1/models/a?b"
    for path in ("..%2ffiles", "a/%2e%2e/%2e%2e/files", "a%2f..%2f..%2ffiles"):
        asked = len(upstream.asked)
        assert server.client.get(f"/v1/models/{path}").status_code == 404
        assert len(upstream.asked) == asked
    with pytest.raises(NotFoundError, match="/v1/embeddings is not passed on") as error:
        client(server).embeddings.create(input="a", model="a/b")
    assert error.value.code == "not_passed_on"
    assert server.client.post("/v1/score", json={"text": "a"}).status_code == 200
    assert server.client.get("/info").json()["upstream"]["mode"] == "block"


def test_streams_and_bodies_are_bounded(
    bundle: Path, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe = letters[0]
    upstream.script = Script([(0, safe), (0, None)])
    made = ProxySettings(upstream=upstream.url)
    bounds = {"max_streams": 2, "max_body_bytes": 2000}
    with running({"tiny": str(bundle)}, proxy=made, **bounds) as server:
        with pytest.raises(RateLimitError):
            ask(server, safe, stream=True, n=3)
        with pytest.raises(APIStatusError) as error:
            ask(server, safe, user="u" * 3000)
        assert (error.value.status_code, error.value.code) == (413, "too_large")
        assert said(ask(server, safe, stream=True, n=2)) == (safe, "stop")


def test_a_client_that_goes_while_the_answer_is_put_away_leaves_no_stream_open(
    bundle: Path,
) -> None:
    """It ends the exchange a second time, when that is waiting for its own tasks."""

    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(WAIT_S)
        finally:
            await asyncio.sleep(0.2)

    async def leave() -> int:
        metrics = Metrics()
        async with AsyncGuard(Guard.load(bundle, backend="cpu")) as guard:
            served = Served("tiny", str(bundle), guard, metrics)
            policy = Policy(served, ProxySettings(upstream="http://localhost"), metrics, WAIT_S)
            call = read_call("completions", b'{"prompt": "a", "stream": true}')
            answer = StreamedAnswer(call, policy)
            await answer.__aenter__()
            await answer._opening
            assert served.open_streams == 1
            answer._tasks.append(asyncio.ensure_future(slow_to_end()))
            await asyncio.sleep(0)
            ending = asyncio.ensure_future(answer.__aexit__(None, None, None))
            await asyncio.sleep(0.05)
            await left(ending)
            return served.open_streams

    assert asyncio.run(leave()) == 0
