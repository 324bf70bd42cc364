"""What one reader of JSON takes and another does not is no way round the guard."""

import gzip
import json
from io import BytesIO
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from proxied import Proxies
from served import Running
from siren_runtime import InputError
from siren_runtime.text.lines import read_texts
from siren_runtime.text.trajectory import trajectory_of
from upstream import ModelServer, Script, chat_of

KEYS = "text", "content", "input", "inputs", "instances", "prompt", "texts"
ASK = '"messages": [{"role": "user", "content": "a"}]'
TWICE = [
    ("/v1/score", '{"text": "a", "text": "b"}'),
    ("/v1/score", '{"text": "a", "t\\u0065xt": "b"}'),
    ("/v1/score", '{"inputs": [{"text": "a", "text": "b"}]}'),
    ("/v1/score", '{"messages": [{"role": "user", "content": "a", "content": "b"}]}'),
    (
        "/v1/score",
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "text": "b"}]}]}',
    ),
    ("/v1/moderations", '{"input": "a", "input": "b"}'),
    ("/predict", '{"inputs": "a", "inputs": "b"}'),
    ("/classify", '{"input": "a", "input": "b"}'),
    ("/v1/models/tiny:predict", '{"instances": ["a"], "instances": ["b"]}'),
    ("/v1/trajectories", '{"messages": [{"role": "user", "content": "a", "content": "b"}]}'),
    ("/beta/litellm_basic_guardrail_api", '{"texts": ["a"], "texts": ["b"]}'),
    ("/v1/streams", '{"prompt": "a", "prompt": "b"}'),
]


def _error(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    return answer.status_code, error["code"]


@pytest.mark.parametrize(("route", "body"), TWICE)
def test_a_key_that_stands_twice_is_refused_by_name(server: Running, route: str, body: str) -> None:
    plain = body.replace("t\\u0065xt", "text")
    answer = server.client.post(route, content=body)
    assert _error(answer) == (400, "repeated_key")
    key = next(key for key in KEYS if f'"{key}": "b"' in plain or f'"{key}": ["b"]' in plain)
    assert f"{key!r} twice" in answer.json()["error"]["message"]


def test_a_key_that_stands_twice_in_kserves_json_is_refused(server: Running) -> None:
    tensor = '{"name": "text", "datatype": "BYTES", "shape": [1]'
    body = f'{{"inputs": [{tensor}, "data": ["a"], "data": ["b"]}}]}}'
    answer = server.client.post("/v2/models/tiny/infer", content=body)
    assert answer.status_code == 400
    assert "'data' twice" in answer.json()["error"]
    parameters = '"parameters": {"binary_data_size": 5, "binary_data_size": 5}'
    head = f'{{"inputs": [{tensor}, {parameters}}}]}}'.encode()
    answer = server.client.post(
        "/v2/models/tiny/infer",
        content=head + b"\x01\x00\x00\x00a",
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.status_code == 400
    assert "'binary_data_size' twice" in answer.json()["error"]


def test_a_key_that_stands_twice_in_a_feed_ends_no_session(server: Running) -> None:
    name = server.client.post("/v1/streams", json={}).json()["id"]
    answer = server.client.post(f"/v1/streams/{name}", content='{"text": "a", "text": "b"}')
    assert _error(answer) == (400, "repeated_key")
    assert server.client.post(f"/v1/streams/{name}", json={"text": "a"}).status_code == 200


@pytest.mark.parametrize("first", ['{"prompt": "a", "prompt": "b"}', "{}"])
def test_a_key_that_stands_twice_ends_a_websocket(server: Running, first: str) -> None:
    with connect(server.url.replace("http://", "ws://") + "/v1/stream") as socket:
        socket.send(first)
        if first == "{}":
            assert json.loads(socket.recv())["type"] == "opened"
            socket.send('{"text": "a", "text": "b"}')
        found = json.loads(socket.recv())
    assert (found["type"], found["error"]["code"]) == ("error", "repeated_key")


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "m", "messages": [{"role": "user", "content": "b"}], ASK}',
        '{"model": "m", "messages": [{"role": "user", "content": "a", "content": "b"}]}',
        '{"model": "m", ASK, "tools": [{"type": "a", "type": "b"}]}',
        '{"model": "m", ASK, "Messages": [{"role": "user", "content": "b"}]}',
        '{"model": "m", ASK, "me\u017f\u017fages": [{"role": "user", "content": "b"}]}',
        '{"model": "m", ASK, "Stream": true}',
    ],
)
def test_the_upstream_is_not_asked_what_it_might_read_otherwise(
    proxies: Proxies, upstream: ModelServer, body: str
) -> None:
    upstream.script, before = Script(whole=chat_of({"content": "a"})), len(upstream.asked)
    answer = proxies().client.post("/v1/chat/completions", content=body.replace("ASK", ASK))
    assert _error(answer) == (400, "repeated_key")
    assert len(upstream.asked) == before


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "a", "image_url": {"url": "http://a/b.png"}},
        {"type": "text", "text": "a", "refusal": "b"},
        {"type": "refusal", "text": "a", "refusal": "b"},
    ],
)
def test_a_part_says_one_thing(server: Running, part: dict[str, Any]) -> None:
    asked = {"messages": [{"role": "user", "content": [part]}]}
    assert _error(server.client.post("/v1/score", json=asked)) == (422, "cannot_be_scored")


@pytest.mark.parametrize("key", ["Prompt", "Suffix", "SUFFIX"])
def test_no_text_to_complete_hides_in_the_case_of_its_key(
    proxies: Proxies, upstream: ModelServer, key: str
) -> None:
    before = len(upstream.asked)
    answer = proxies().client.post("/v1/completions", json={"prompt": "a", key: "b"})
    assert _error(answer) == (400, "repeated_key")
    assert len(upstream.asked) == before


@pytest.mark.parametrize("value", ["true", 1, "1"])
def test_a_stream_is_asked_for_by_true_alone(
    proxies: Proxies, upstream: ModelServer, value: Any
) -> None:
    before = len(upstream.asked)
    asked = {"messages": [{"role": "user", "content": "a"}], "stream": value}
    answer = proxies().client.post("/v1/chat/completions", json=asked)
    assert _error(answer) == (422, "invalid")
    assert len(upstream.asked) == before


def test_of_an_answers_key_that_stands_twice_the_one_that_was_read_goes_out(
    proxies: Proxies, upstream: ModelServer
) -> None:
    choice = '{"index": 0, "delta": {"content": "a", "content": "b"}, "finish_reason": "stop"}'
    event = f'data: {{"id": "1", "choices": [{choice}]}}\n\n'.encode()
    upstream.script = Script(raw=event)
    asked = {"messages": [{"role": "user", "content": "a"}], "stream": True}
    answer = proxies(mode="log").client.post("/v1/chat/completions", json=asked)
    found = json.loads(answer.text.partition("data: ")[2].partition("\n")[0])
    assert found["choices"][0]["delta"] == {"content": "b"}
    assert '"a"' not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": NaN}',
        b'\xef\xbb\xbf{"text": "a"}',
        '{"text": "a"}'.encode("utf-16"),
        b'{"text": "\xed\xa0\x80"}',
        b'{"text": "a"} {"text": "b"}',
        b'{"text": "a", "order": ' + b"9" * 6000,
        b'{"messages": ' + b"[" * 20_000,
    ],
)
def test_what_is_not_json_to_all_is_json_to_none(server: Running, body: bytes) -> None:
    answer = server.client.post("/v1/score", content=body)
    assert _error(answer) == (400, "not_json")


def test_a_compressed_body_is_refused_by_name(server: Running) -> None:
    for body in (gzip.compress(b'{"text": "a"}'), b'{"text": "a"}'):
        answer = server.client.post("/v1/score", content=body, headers={"Content-Encoding": "gzip"})
        assert _error(answer) == (415, "content_encoding")
        assert "gzip" in answer.json()["error"]["message"]


def test_a_key_that_stands_twice_within_a_row_is_an_error_of_that_row() -> None:
    rows = (
        b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n'
        b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f", "name": "g"}]}\n'
        b'{"messages": [{"role": "user", "content": "a"}]}\n'
    )
    groups = read_texts(BytesIO(rows), "jsonl", trajectories=True)
    lines = [line for group in groups for line in group]
    assert [line.error is None for line in lines] == [False, False, True]
    assert "'content' twice" in (lines[0].error or "")
    assert "'name' twice" in (lines[1].error or "")


def test_a_key_that_stands_twice_in_a_calls_arguments_is_an_error() -> None:
    call = {"function": {"name": "f", "arguments": '{"to": "a", "to": "b"}'}}
    with pytest.raises(InputError, match="'to' twice"):
        trajectory_of(messages=[{"role": "assistant", "tool_calls": [call]}])
