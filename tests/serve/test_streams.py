"""Streams over a WebSocket and over sessions with server-sent events."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from socket import create_connection
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from served import Running, eventually, running
from siren_runtime import AsyncGuard, Guard, Patience, StreamResult
from siren_serve.guards import Served
from siren_serve.metrics import Metrics
from siren_serve.streams import Session
from waiting import WAIT_S, left

ROUNDING = 1e-6
TEXT = "How do I pick a lock, now?"
PIECES = [TEXT[i : i + 5] for i in range(0, len(TEXT), 5)]
RULE = {"rule": "patience", "k": 2, "n": 3, "threshold": 0.2}

pytestmark = pytest.mark.filterwarnings("ignore:.*re-encodes its text")


@pytest.fixture(scope="module")
def expected(guard: Guard) -> list[dict[str, Any]]:
    with guard.stream("ask", rules=(Patience(2, 3, 0.2), *guard.tiers)) as stream:
        results = [stream.feed(piece).to_dict() for piece in PIECES]
    return [
        {**json.loads(json.dumps(r)), "score": pytest.approx(r["score"], abs=ROUNDING)}
        for r in results
    ]


def _without_scores(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in decision.items() if k != "score"} for decision in decisions]


def _same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    decisions = found.pop("decisions"), expected["decisions"]
    assert found == {k: v for k, v in expected.items() if k != "decisions"}
    assert _without_scores(decisions[0]) == _without_scores(decisions[1])


def _connect(server: Running) -> ClientConnection:
    return connect(server.url.replace("http://", "ws://") + "/v1/stream")


def test_a_websocket_gives_what_a_stream_of_the_guard_gives(
    server: Running, expected: list[dict[str, Any]]
) -> None:
    with _connect(server) as socket:
        socket.send(json.dumps({"prompt": "ask", "rules": [RULE]}))
        assert json.loads(socket.recv()) == {"type": "opened", "model": "tiny"}
        for piece, result in zip(PIECES, expected, strict=True):
            socket.send(json.dumps({"text": piece}))
            found = json.loads(socket.recv())
            assert found.pop("type") == "result"
            _same(found, result)
        socket.send(json.dumps({"end": True}))
        whole = json.loads(socket.recv())  # on all of it, whose end may complete a span
        assert whole["score"] == expected[-1]["score"]
        with pytest.raises(ConnectionClosed):
            socket.recv()
        assert socket.close_code == 1000
    eventually(lambda: server.metric('siren_streams{guard="tiny"}') == 0)


@pytest.mark.parametrize("opening", [{}, {"prompt": "ask"}])
def test_an_end_is_answered_though_nothing_was_fed(
    server: Running, guard: Guard, opening: dict[str, str]
) -> None:
    with guard.stream(**opening) as stream:
        expected = stream.feed("", last=True)
    with _connect(server) as socket:
        socket.send(json.dumps(opening))
        socket.recv()
        socket.send(json.dumps({"end": True}))
        found = json.loads(socket.recv())
        with pytest.raises(ConnectionClosed):
            socket.recv()
    assert (found["type"], found["tokens"]) == ("result", expected.tokens)
    assert found["score"] == pytest.approx(expected.score, abs=ROUNDING)


def test_a_session_over_a_connection_that_had_a_request_before_is_kept(bundle: Path) -> None:
    with running({"tiny": str(bundle)}) as server:
        server.server.config.timeout_keep_alive = 0.2  # type: ignore[assignment]
        host, _, port = server.url.removeprefix("http://").partition(":")
        upgrade = (
            b"GET /v1/stream HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        with create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            connection.sendall(upgrade)
            assert connection.recv(65536).startswith(b"HTTP/1.1 101 ")
            time.sleep(0.6)  # longer than a connection without a request is kept
            connection.sendall(b"\x89\x80mask")
            assert connection.recv(2) == b"\x8a\x00"  # an empty pong


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_stream_counts_once_as_harmful_if_it_ever_was(bundle: Path, threshold: float) -> None:
    with running({"tiny": str(bundle)}) as server:
        with _connect(server) as socket:
            socket.send(json.dumps({"prompt": "ask", "threshold": threshold}))
            socket.recv()
            for piece in PIECES:
                socket.send(json.dumps({"text": piece}))
                socket.recv()
        verdict = "safe" if threshold else "harmful"
        line = f'siren_verdicts_total{{guard="tiny",tier="",verdict="{verdict}"}}'
        eventually(lambda: server.metric('siren_streams{guard="tiny"}') == 0)
        assert server.metric(line) == 1
    assert sum(1 for piece in PIECES if piece) > 1


def test_what_opens_a_stream_and_says_nothing_is_no_verdict(guard: Guard) -> None:
    async def read() -> None:
        async with (
            AsyncGuard(guard) as shared,
            shared.stream("ask", threshold=0.0) as stream,
        ):
            assert (await stream.feed("")).is_harmful
            assert stream.verdict is None
            result = await stream.feed("text")
            assert stream.verdict == result

    asyncio.run(read())


def test_the_verdict_of_a_stream_is_the_first_that_was_harmful(guard: Guard) -> None:
    async def read(threshold: float) -> tuple[StreamResult | None, list[StreamResult]]:
        async with AsyncGuard(guard) as shared:
            async with shared.stream("ask", threshold=threshold) as stream:
                assert stream.verdict is None
                results = [await stream.feed(piece) for piece in PIECES]
            return stream.verdict, results

    scores = [result.score for result in asyncio.run(read(1.0))[1]]
    assert asyncio.run(read(1.0))[0] == asyncio.run(read(1.0))[1][-1]
    verdict, results = asyncio.run(read(max(scores)))
    assert verdict == results[scores.index(max(scores))]


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (["{"], "cannot_be_scored"),
        (['{"rules": [{"rule": "guess"}]}'], "cannot_be_scored"),
        (['{"model": "third"}'], "model_not_found"),
        (["{}", '{"txt": "a"}'], "cannot_be_scored"),
        (["{}", '{"text": "' + "a" * 300_000 + '"}'], "cannot_be_scored"),
        (['{"rules": [{"rule": "schedule", "steps": [[1, 0.5]]}]}'], "cannot_be_scored"),
        ([json.dumps({"rules": [RULE] * 17})], "cannot_be_scored"),
        ([b"{}"], "cannot_be_scored"),
        (["{}", b'{"text": "a"}'], "cannot_be_scored"),
    ],
)
def test_a_message_that_is_not_understood_ends_a_websocket(
    server: Running, messages: list[str | bytes], code: str
) -> None:
    with _connect(server) as socket:
        for message in messages:
            socket.send(message)
        answers = [json.loads(socket.recv()) for _ in messages]
        with pytest.raises(ConnectionClosed):
            socket.recv()
    assert answers[-1]["type"] == "error"
    assert answers[-1]["error"]["code"] == code


def test_a_websocket_outlasts_the_time_of_a_body_and_is_counted_until_it_ends(
    bundle: Path,
) -> None:
    with running({"tiny": str(bundle)}, body_timeout_s=0.3) as server:
        assert server.client.get("/health/live").status_code == 200
        with _connect(server) as socket:
            socket.send("{}")
            assert json.loads(socket.recv())["type"] == "opened"
            time.sleep(0.6)
            socket.send('{"text": "a"}')
            assert json.loads(socket.recv())["type"] == "result"
            assert server.metric("siren_connections") == 2
        eventually(lambda: server.metric("siren_connections") == 1)


def test_a_session_tells_its_verdicts_to_who_feeds_and_who_listens(
    server: Running, expected: list[dict[str, Any]]
) -> None:
    opened = server.client.post("/v1/streams", json={"prompt": "ask", "rules": [RULE]})
    assert opened.status_code == 201
    path = f"/v1/streams/{opened.json()['id']}"
    for piece, result in zip(PIECES[:2], expected, strict=False):
        _same(server.client.post(path, json={"text": piece}).json(), result)
    with server.client.stream("GET", f"{path}/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        lines = events.iter_lines()
        found = [_event(lines) for _ in range(2)]
        for piece in PIECES[2:]:
            assert server.client.post(path, json={"text": piece}).status_code == 200
        found += [_event(lines) for _ in PIECES[2:]]
        assert server.client.delete(path).status_code == 204
        assert _event(lines) == ("end", {"why": "it was deleted"})
    for (kind, data), result in zip(found, expected, strict=True):
        assert kind == "result"
        _same(data, result)
    assert server.client.post(path, json={"text": "more"}).status_code == 404


def _event(lines: Any) -> tuple[str, Any]:
    kind = ""
    for line in lines:
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        if line.startswith("data: "):
            return kind, json.loads(line.removeprefix("data: "))
    raise AssertionError("the events ended")


def test_sessions_are_bounded_and_end_when_nothing_comes(bundle: Path) -> None:
    with running({"tiny": str(bundle)}, max_streams=2, stream_idle_s=0.5) as server:
        for _ in range(2):
            assert server.client.post("/v1/streams", json={}).status_code == 201
        third = server.client.post("/v1/streams", json={})
        assert third.status_code == 429
        assert third.headers["Retry-After"] == "1"
        with _connect(server) as socket:
            socket.send("{}")
            assert json.loads(socket.recv())["error"]["code"] == "busy"
        eventually(lambda: server.client.post("/v1/streams", json={}).status_code == 201)
        start = time.monotonic()
        with _connect(server) as socket:
            assert json.loads(socket.recv())["error"]["code"] == "stream_timeout"
        assert time.monotonic() - start >= 0.5


def test_a_session_that_is_long_in_opening_begins_when_it_is_open(bundle: Path) -> None:
    with running({"tiny": str(bundle)}, max_streams=1, stream_idle_s=3.0) as server:
        with ThreadPoolExecutor() as pool, server.held():
            asked = [pool.submit(server.client.post, "/v1/streams", json={}) for _ in range(2)]
            time.sleep(4.0)  # longer than a session is kept that nobody feeds
        opened, refused = sorted((a.result(WAIT_S) for a in asked), key=lambda a: a.status_code)
        assert (opened.status_code, refused.status_code) == (201, 429)
        path = f"/v1/streams/{opened.json()['id']}"
        assert server.client.post(path, json={"text": "a"}).status_code == 200
        eventually(lambda: server.metric('siren_streams{guard="tiny"}') == 0)
        assert server.client.post(path, json={"text": "a"}).status_code == 404


def test_a_session_whose_feed_fails_has_no_verdict(server: Running) -> None:
    name = server.client.post("/v1/streams", json={}).json()["id"]
    assert server.client.post(f"/v1/streams/{name}", json={"text": ""}).status_code in (200, 422)
    large = {"text": "a" * 300_000}
    assert server.client.post(f"/v1/streams/{name}", json=large).status_code in (404, 422)
    assert server.client.post(f"/v1/streams/{name}", json={"text": "a"}).status_code == 404


def test_a_piece_without_a_verdict_in_time_ends_a_stream(bundle: Path) -> None:
    with running({"tiny": str(bundle)}, timeout_s=0.2) as server:
        name = server.client.post("/v1/streams", json={}).json()["id"]
        with _connect(server) as socket:
            socket.send("{}")
            assert json.loads(socket.recv())["type"] == "opened"
            with server.held():
                socket.send(json.dumps({"text": "a"}))
                assert json.loads(socket.recv())["error"]["code"] == "timeout"
                late = server.client.post(f"/v1/streams/{name}", json={"text": "a"})
                assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        assert server.client.post(f"/v1/streams/{name}", json={"text": "a"}).status_code == 404


def test_who_leaves_while_a_session_ends_leaves_no_stream_open(bundle: Path) -> None:
    async def leave() -> int:
        async with AsyncGuard(Guard.load(bundle, backend="cpu")) as guard:
            served = Served("tiny", str(bundle), guard, Metrics())
            owner = AsyncExitStack()
            stream = await owner.enter_async_context(served.stream(None))
            session = Session(served, stream, owner)
            assert served.open_streams == 1
            async with session._changed:  # as somebody does who reads its events
                ending = asyncio.ensure_future(session.end("it was deleted"))
                await asyncio.sleep(0)
                await left(ending)
            return served.open_streams

    assert asyncio.run(leave()) == 0
