"""Whoever asks for too much is refused at once, in one form, and nobody else notices."""

import itertools
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from served import Running, eventually, running
from siren_runtime import InputError
from siren_serve.keys import Keys
from siren_serve.values import Values

KEY = "a key of sixteen characters and more"


def _error(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    return answer.status_code, error["code"]


def _raw(server: Running, data: bytes, wait: float = 10) -> bytes:
    """Send bytes and read until the server closes, or has nothing more to say."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        connection.sendall(data)
        found = b""
        try:
            while chunk := connection.recv(65536):
                found += chunk
        except TimeoutError:
            pass
        return found


@pytest.fixture(scope="module")
def tight(bundle: Path) -> Any:
    """A server of small bounds."""
    bounds = {
        "max_body_bytes": 2000,
        "max_texts": 3,
        "max_text_tokens": 100,
        "body_timeout_s": 0.3,
        "timeout_s": 0.2,
        "max_calls": 2,
        "max_waiting_tokens": 60,
        "max_connections": 8,
    }
    with running({"tiny": str(bundle)}, **bounds) as server:
        yield server


def test_a_large_body_is_refused_before_it_is_read(tight: Running) -> None:
    assert _error(tight.client.post("/v1/score", json={"text": "a" * 3000})) == (413, "too_large")
    head = b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n"
    assert b"413" in _raw(tight, head + b"{").partition(b"\r\n")[0]


def test_too_many_texts_or_tokens_are_refused(tight: Running) -> None:
    answer = tight.client.post("/v1/score", json={"inputs": ["a"] * 4})
    assert _error(answer) == (413, "too_many_texts")
    answer = tight.client.post("/v1/score", json={"text": "a" * 101})
    assert _error(answer) == (422, "cannot_be_scored")
    assert "100 tokens" in answer.json()["error"]["message"]


def test_many_short_messages_are_refused_and_many_quotes_in_a_text_are_not(
    server: Running,
) -> None:
    many = {"messages": [{"role": "user", "content": "a"}] * 10_000}
    assert _error(server.client.post("/v1/score", json=many)) == (413, "too_many_values")
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [["a"] * 40_000]}
    body = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))}
    for said in (headers, {}):
        answer = server.client.post("/v2/models/tiny/infer", content=body, headers=said)
        assert answer.status_code == 413
    answer = server.client.post("/v1/score", json=many, headers=headers)  # no route of tensors
    assert _error(answer) == (413, "too_many_values")
    for text in ('"' * 100_000, ",[{" * 40_000):
        marks = server.client.post("/v1/score", json={"text": text})
        assert _error(marks) == (422, "cannot_be_scored")  # for its tokens
        assert "tokens" in marks.text
        marks = _inferred(server, text)
        assert (marks.status_code, "tokens" in marks.text) == (422, True)


def _inferred(server: Running, text: str) -> httpx.Response:
    """The answer to a text that stands behind the JSON."""
    data = len(text).to_bytes(4, "little") + text.encode()
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": parameters}
    body = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))}
    return server.client.post("/v2/models/tiny/infer", content=body + data, headers=headers)


@pytest.mark.parametrize("value", ["1", "[]", "{}", "[[1]]"])
def test_many_values_are_refused_before_they_are_decoded(server: Running, value: str) -> None:
    body = '{"text": "a", "spans": [' + ",".join([value] * 40_000) + "]}"
    assert _error(server.client.post("/v1/score", content=body)) == (413, "too_many_values")


JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a,[{"\\é', max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a"\\', max_size=3), inner),
    max_leaves=20,
)


def _counted(value: Any) -> tuple[int, int]:
    """Keys and strings; commas and opening brackets outside them."""
    if not isinstance(value, list | dict):
        return int(isinstance(value, str)), 0
    inner = [_counted(item) for item in (value.values() if isinstance(value, dict) else value)]
    keys = len(value) if isinstance(value, dict) else 0
    marks = 1 + max(len(value) - 1, 0)
    return keys + sum(s for s, _ in inner), marks + sum(m for _, m in inner)


@given(
    value=JSON,
    cuts=st.lists(st.integers(1, 5), min_size=1),
    is_ascii=st.booleans(),
    behind=st.none() | st.text(alphabet='a,[{"\\', max_size=8),
)
def test_values_are_counted_however_a_body_is_cut(
    value: Any, cuts: list[int], is_ascii: bool, behind: str | None
) -> None:
    data = json.dumps(value, ensure_ascii=is_ascii).encode()
    counted = Values(None if behind is None else len(data))
    data += (behind or "").encode()
    for length in itertools.cycle(cuts):
        counted.add(data[:length])
        data = data[length:]
        if not data:
            break
    assert (counted.strings, counted.marks) == _counted(value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "char 1"),
        (b"\xff\xfe", "byte 0"),
        (b'{"text": "\xff"}', "utf-8"),
        (b'{"text": "\xed\xa0\x80"}', "utf-8"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "a", "threshold": NaN}', "invalid character"),
        (b'{"text": "a", "threshold": 1e999}', "out of range"),
        (b"", "empty"),
        (b"[" * 1500, "recursion"),
    ],
)
def test_malformed_json_is_an_error_of_the_client(tight: Running, body: bytes, told: str) -> None:
    answer = tight.client.post("/v1/score", content=body)
    assert _error(answer) == (400, "not_json")
    assert told in answer.text
    answer = tight.client.post("/v2/models/tiny/infer", content=body.replace(b"text", b"id"))
    assert answer.status_code in (400, 422), answer.text


def test_an_empty_body_and_a_path_of_another_server_are_explained(tight: Running) -> None:
    answer = tight.client.post("/v1/score")
    assert _error(answer) == (400, "not_json")
    assert "body is empty" in answer.text
    answer = tight.client.post("/v1/chat/completions", json={})
    assert _error(answer) == (404, "not_found")
    assert "--upstream" in answer.text


def test_slow_headers_and_slow_bodies_are_ended(tight: Running) -> None:
    start = time.monotonic()
    assert b" 408 " in _raw(tight, b"")
    assert b" 408 " in _raw(tight, b"POST /v1/score HTTP/1.1\r\nHost:")
    head = b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n{"
    answer = _raw(tight, head)
    assert b" 408 " in answer
    assert b"body did not come within 0.3 s" in answer
    assert time.monotonic() - start < 9


def test_malformed_http_leaves_the_server_up(tight: Running) -> None:
    for data in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST / HTTP/9\r\n\r\n"):
        assert b" 200 " not in _raw(tight, data)
    assert tight.client.get("/health/ready").status_code == 200


def test_headers_are_bounded_and_bodies_do_not_count_for_them(
    tight: Running, server: Running
) -> None:
    head, size = b"GET /health/live HTTP/1.1\r\nHost: a\r\n", (64 << 10) + 1
    many = b"".join(b"A%d: b\r\n" % number for number in range(10_000))
    for headers in (b"A: " + b"a" * size, many):  # a byte too many, so that none is left unread
        assert b" 431 " in _raw(tight, (head + headers)[:size])
    for _ in range(3):  # over one connection
        assert server.client.post("/v1/score", json={"text": "a" * 200_000}).status_code == 422


def test_connections_are_bounded(tight: Running) -> None:
    host, _, port = tight.url.removeprefix("http://").partition(":")
    sockets = [socket.create_connection((host, int(port)), timeout=5) for _ in range(20)]
    answers = []
    for connection in sockets:
        with connection:
            answers.append(connection.recv(65536).partition(b"\r\n")[0])
    assert sum(b" 503 " in answer for answer in answers) >= 12
    eventually(lambda: tight.client.get("/health/ready").status_code == 200)


def test_a_full_queue_refuses_at_once_and_tells_when_to_come_back(tight: Running) -> None:
    with ThreadPoolExecutor(2) as pool, tight.held():
        waits = pool.submit(tight.client.post, "/v1/score", json={"text": "a" * 50})
        eventually(lambda: tight.served.guard.dispatcher.waiting[1] > 50)
        start = time.monotonic()
        refused = tight.client.post("/v1/score", json={"text": "b" * 50})
        assert _error(refused) == (429, "busy")
        assert int(refused.headers["Retry-After"]) >= 1
        assert time.monotonic() - start < 5
        time.sleep(0.25)  # until the first one's time is up
    assert _error(waits.result()) == (504, "timeout")
    assert tight.client.post("/v1/score", json={"text": "text"}).status_code == 200
    assert tight.metric('siren_refusals_total{code="busy"}') >= 1


def test_while_as_many_calls_as_may_be_are_under_way_no_body_is_read(bundle: Path) -> None:
    with running({"tiny": str(bundle)}, max_calls=2) as server:
        with ThreadPoolExecutor(2) as pool, server.held():
            texts = ["a", "b"]
            waits = [
                pool.submit(server.client.post, "/v1/score", json={"text": text}) for text in texts
            ]
            eventually(lambda: server.served.guard.dispatcher.waiting[0] == 2)
            for path in ("/v1/score", "/v1/moderations", "/predict", "/classify"):
                answer = server.client.post(path, content=b"no JSON")
                assert _error(answer) == (429, "busy")
                assert int(answer.headers["Retry-After"]) >= 1
            large = server.client.post("/v1/score", content=b"[" * 1_500_000)
            assert _error(large) == (429, "busy")
            assert server.client.get("/v1/models").status_code == 200  # over the same connection
        assert [wait.result().status_code for wait in waits] == [200, 200]
        assert _error(server.client.post("/v1/score", content=b"no JSON"))[0] == 400
        requests = 'siren_requests_total{route="/predict",status="429"}'
        assert server.metric(requests) == 1
        assert server.metric('siren_refusals_total{code="busy"}') == 5


def test_who_is_answered_before_the_body_came_keeps_no_connection(
    bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(KEY)
    bounds = {"keys_file": tmp_path / "keys", "body_timeout_s": 0.3}
    with running({"tiny": str(bundle)}, **bounds) as server:
        server.server.config.timeout_keep_alive = 0.3  # type: ignore[assignment]
        head = b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"
        for rest in (b"{}", b"{"):  # all of the body, or not
            host, _, port = server.url.removeprefix("http://").partition(":")
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(head)
                found = connection.recv(65536)
                assert found.startswith(b"HTTP/1.1 401 ")
                while b"unauthorized" not in found:
                    found += connection.recv(65536)
                connection.sendall(rest)
                assert connection.recv(65536) == b""  # closed, without a second answer
        key = {"X-API-Key": KEY}
        refused = server.client.get("/metrics", headers=key).text
        assert 'siren_refusals_total{code="too_slow"}' not in refused


def test_what_waits_is_measured_though_nobody_asks_this_worker(server: Running) -> None:
    line = 'siren_calls{guard="tiny"} 1.0'
    with ThreadPoolExecutor(1) as pool:
        with server.held():
            waits = pool.submit(server.client.post, "/v1/score", json={"text": "text"})
            eventually(lambda: line in server.guards._metrics.text().decode())
        assert waits.result().status_code == 200
    eventually(lambda: line not in server.guards._metrics.text().decode())


def test_a_request_whose_time_is_up_before_it_is_run_is_answered(bundle: Path) -> None:
    with running({"tiny": str(bundle)}, timeout_s=1e-6) as server:
        answer = server.client.post("/v1/score", json={"text": "text"})
        assert _error(answer) == (504, "timeout")
        assert "1e-06 s passed while the texts were" in answer.text
        assert server.served.guard.dispatcher.waiting == (0, 0, 0)


def test_a_client_that_goes_costs_no_engine_run(server: Running) -> None:
    runs = 'siren_run_seconds_count{guard="tiny",kind="score"}'
    before = server.metric(runs)
    with server.held():
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b'POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 16\r\n\r\n{"text": "gone"}'
            )
            eventually(lambda: server.served.guard.dispatcher.waiting[1] > 0)
        eventually(lambda: server.served.guard.dispatcher.waiting[0] == 0)
    assert server.client.post("/v1/score", json={"text": "text"}).status_code == 200
    eventually(lambda: server.metric(runs) == before + 1)
    assert server.metric('siren_requests_total{route="/v1/score",status="499"}') == 1


def test_a_client_that_goes_in_the_midst_of_its_body_is_no_failure(server: Running) -> None:
    gone = 'siren_requests_total{route="/v1/score",status="499"}'
    before = server.metric(gone)
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b'POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 16\r\n\r\n{"te')
    eventually(lambda: server.metric(gone) == before + 1)
    assert server.metric('siren_refusals_total{code="internal"}') == 0


def test_a_shape_of_many_large_sizes_is_refused(server: Running) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [10**18] * 20_000, "data": ["a"]}
    answer = server.client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
    assert answer.status_code == 422
    assert "1 strings" in answer.json()["error"]


def test_a_tensor_is_read_whole_or_refused(server: Running) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [-1, -1], "data": ["a"]}
    answer = server.client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
    assert (answer.status_code, "its shape" in answer.text) == (422, True)
    body = json.dumps({"inputs": [{**tensor, "shape": [1]}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))}
    path = "/v2/models/tiny/infer"
    assert server.client.post(path, content=body, headers=headers).status_code == 200
    answer = server.client.post(path, content=body + b"more", headers=headers)
    assert (answer.status_code, "more follows" in answer.text) == (422, True)


def test_keys_open_all_but_health(bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(f"\ufeff{KEY}\r\n# comment\r\n".encode())  # as some editors write it
    with running({"tiny": str(bundle)}, keys_file=keys) as server:
        assert server.client.get("/health/ready").status_code == 200
        asked = server.client.head("/health/ready")
        assert (asked.status_code, asked.content) == (200, b"")
        for headers in ({}, {"X-API-Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}):
            answer = server.client.post("/v1/score", json={"text": "a"}, headers=headers)
            assert _error(answer) == (401, "unauthorized")
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
            answer = server.client.post("/v1/score", json={"text": "a"}, headers=headers)
            assert answer.status_code == 200
        before = server.served
        keys.write_text("another key of sixteen characters\n")
        answer = server.client.post("/admin/reload", headers={"X-API-Key": KEY})
        assert answer.json() == {"reloaded": ["tiny"]}
        assert server.served is not before
        assert server.client.get("/info", headers={"X-API-Key": KEY}).status_code == 401


def test_without_keys_nobody_reloads_over_http(server: Running) -> None:
    assert _error(server.client.post("/admin/reload")) == (403, "no_keys")


@pytest.mark.parametrize("content", [None, "", "# only this\n", "short\n"])
def test_a_file_of_keys_that_holds_none_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="keys"):
        Keys(path)
