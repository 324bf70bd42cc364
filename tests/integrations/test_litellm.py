"""LiteLLM's proxy with the guard as its guardrail, in front of a model server on the loopback."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from pages import block
from siren_runtime import Guard
from siren_runtime.errors import BackendError
from siren_runtime.serving.asynchronous import AsyncGuard, AsyncStream
from upstream import ModelServer, Script, chat_of
from waiting import WAIT_S, eventually

pytest.importorskip("litellm", reason="LiteLLM is not installed: scripts/test-integrations litellm")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # and not one of the internet

import openai
import yaml
from litellm.proxy import proxy_server
from litellm.proxy.guardrails.init_guardrails import init_guardrails_v2

from siren_serve.integrations.guarding import SettingsError

KEY = "sk-of-this-test-and-of-nothing-else-at-all"


def config(bundle: Path, upstream: ModelServer) -> dict[str, Any]:
    """That of the page, with this bundle and this model server."""
    found: dict[str, Any] = yaml.safe_load(block("integrations.md", "LiteLLM", "yaml"))
    (model,), (guardrail,) = found["model_list"], found["guardrails"]
    model["litellm_params"]["api_base"] = upstream.url
    guardrail["litellm_params"] |= {"bundle": str(bundle), "stride": 0, "max_text_bytes": 9999}
    text = {**model["litellm_params"], "model": "text-completion-openai/small"}
    found["model_list"].append({"model_name": "text", "litellm_params": text})
    beside = {**guardrail["litellm_params"], "mode": "during_call", "threshold": 1e-9}
    found["guardrails"].append(
        {"guardrail_name": "beside", "litellm_params": {**beside, "default_on": False}}
    )
    return {**found, "general_settings": {"master_key": KEY}}


@pytest.fixture(scope="module")
def client(
    bundle: Path, upstream: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a real proxy, in a thread so that tests can make the guard fail."""
    file = tmp_path_factory.mktemp("litellm") / "config.yaml"
    file.write_text(yaml.safe_dump(config(bundle, upstream)), encoding="utf-8")
    proxy_server.save_worker_config(config=str(file))
    options = uvicorn.Config(proxy_server.app, port=0, log_level="warning")
    server = uvicorn.Server(options)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started or not thread.is_alive())
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    yield openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=WAIT_S)
    server.should_exit = server.force_exit = True
    thread.join(WAIT_S)


def ask(client: openai.OpenAI, content: Any, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="small", messages=messages, **options)


def asked_of(upstream: ModelServer) -> int:
    """How often the model was asked; LiteLLM also asks which models there are."""
    return sum(asked.path != "/v1/models" for asked in upstream.asked)


def given_out(chunks: Any) -> tuple[list[str], str]:
    """What a stream's first choice says before it ends with an error, and the error."""
    said: list[str] = []
    with pytest.raises(openai.APIError) as error:
        said.extend(
            choice.delta.content or ""
            for chunk in chunks
            for choice in chunk.choices
            if choice.index == 0
        )
    return [text for text in said if text], str(error.value)


def cut(guard: Guard, prompt: str, pieces: list[str]) -> int:
    """How many pieces pass before the stream of a guard is harmful."""
    with guard.stream(prompt) as stream:
        for place, piece in enumerate(pieces):
            if stream.feed(piece).is_harmful:
                return place
    raise AssertionError("the pieces are harmless")


def filled(message: dict[str, Any], text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(message).replace("{}", text))
    return found


def test_what_is_harmless_passes_both_ways(
    client: openai.OpenAI, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, _ = letters
    upstream.script = Script(whole=chat_of({"content": safe * 5}))
    assert ask(client, safe * 9).choices[0].message.content == safe * 5
    upstream.script = Script(deltas=[(0, safe), (0, safe * 3), (0, None)])
    chunks = list(ask(client, [{"type": "text", "text": safe}], stream=True))
    said = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(said) == safe * 4
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_an_answer_may_be_sent_back_as_it_came(
    client: openai.OpenAI, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, _ = letters
    message = {"content": safe, "reasoning": safe, "kind_of_server": "vLLM"}
    upstream.script = Script(whole=chat_of(message))
    asked = {"role": "user", "content": safe}
    came = ask(client, safe).choices[0].message.model_dump(exclude_unset=True)
    assert came.keys() - {"role", "content"}  # LiteLLM's own
    again = client.chat.completions.create(model="small", messages=[asked, came, asked])
    assert again.choices[0].message.content == safe


def test_a_harmful_prompt_is_refused_before_the_model_is_asked(
    client: openai.OpenAI, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    asked = asked_of(upstream)
    parts = [{"type": "text", "text": safe}, {"type": "text", "text": harmful * 9}]
    for content in (harmful * 9, parts):
        for options in ({}, {"stream": True}, {"n": 2}):
            with pytest.raises(openai.BadRequestError, match=r"blocked as harmful: score [01]\.\d"):
                ask(client, content, **options)
    with pytest.raises(openai.BadRequestError, match="blocked as harmful"):
        client.completions.create(model="text", prompt=harmful * 9)
    assert asked_of(upstream) == asked


@pytest.mark.parametrize(
    "beside",
    [
        {"extra_body": {"messages": [{"role": "user", "content": "HARM"}]}},
        {"system": "HARM"},
        {"prompt_variables": {"a": "HARM"}},
        {"prediction": {"type": "content", "content": "HARM HARM"}},
        {"Messages": [{"role": "user", "content": "HARM"}]},
        {"System": "HARM"},
        {"prompt_token_ids": [1, 2]},
    ],
)
def test_a_prompt_beside_the_messages_does_not_pass(
    client: openai.OpenAI, upstream: ModelServer, letters: tuple[str, str], beside: dict[str, Any]
) -> None:
    safe, harmful = letters
    asked = asked_of(upstream)
    told = json.loads(json.dumps(beside).replace("HARM", harmful * 9))
    upstream.script = Script(whole=chat_of({"content": safe}))
    with pytest.raises(openai.APIStatusError, match=r"blocked as harmful|no verdict") as error:
        ask(client, safe, extra_body=told)
    assert error.value.status_code in (400, 422)
    assert asked_of(upstream) == asked


@pytest.mark.parametrize("options", [{}, {"stream": True}], ids=["whole", "stream"])
def test_beside_the_model_a_prompt_is_read_before_anything_goes_out(
    client: openai.OpenAI,
    upstream: ModelServer,
    letters: tuple[str, str],
    options: dict[str, Any],
) -> None:
    safe, _ = letters
    upstream.script = Script(whole=chat_of({"content": safe}), deltas=[(0, safe), (0, None)])
    assert ask(client, safe, **options)
    with pytest.raises(openai.BadRequestError, match="of threshold 1e-09"):
        ask(client, safe, extra_body={"guardrails": ["beside"]}, **options)


TOOL = {"index": 0, "id": "1", "type": "function"}
CALLED = {**TOOL, "function": {"name": "look_up", "arguments": '{"what": "{}"}'}}
SAID: dict[str, dict[str, Any]] = {
    "content": {"content": "{}"},
    "reasoning": {"reasoning_content": "{}"},
    "tool call": {"tool_calls": [CALLED]},
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_a_harmful_answer_is_not_given_out(
    client: openai.OpenAI, upstream: ModelServer, letters: tuple[str, str], said: dict[str, Any]
) -> None:
    safe, harmful = letters
    message = {"content": None, **filled(said, harmful * 99)}
    upstream.script = Script(whole=chat_of({"content": safe}, message))
    with pytest.raises(openai.BadRequestError, match="blocked as harmful"):
        ask(client, safe, n=2)


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_whatever_a_stream_says_is_read(
    client: openai.OpenAI, upstream: ModelServer, letters: tuple[str, str], said: dict[str, Any]
) -> None:
    safe, harmful = letters
    upstream.script = Script(deltas=[(0, safe), (0, filled(said, harmful * 99)), (0, None)])
    text, error = given_out(ask(client, safe, stream=True))
    assert text == [safe]
    assert "blocked as harmful" in error


def test_a_stream_ends_before_the_piece_that_decides_and_the_model_stops(
    client: openai.OpenAI, upstream: ModelServer, guard: Guard, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    pieces = [safe * 3, safe, *[harmful] * 9, safe]
    count = cut(guard, safe, pieces)
    assert 2 < count < len(pieces) - 1
    upstream.script = Script(deltas=[(0, piece) for piece in pieces], hang=True)
    text, error = given_out(ask(client, safe, stream=True))
    assert text == pieces[:count]
    assert "blocked as harmful" in error
    assert upstream.last.gone.wait(WAIT_S)


def test_each_choice_has_a_stream_of_its_own(
    client: openai.OpenAI, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    deltas = [(0, safe), (1, safe), *[(0, safe * 9)] * 9, (1, harmful * 9), (0, safe)]
    upstream.script = Script(deltas=deltas)
    text, error = given_out(ask(client, safe, stream=True, n=2))
    assert text == [safe, *[safe * 9] * 9]
    assert "blocked as harmful" in error


def test_completions_are_read_too(
    client: openai.OpenAI, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    upstream.script = Script(deltas=[(0, safe), (0, safe), (0, None)])
    chunks = client.completions.create(model="text", prompt=safe, stream=True)
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == safe * 2
    upstream.script = Script(deltas=[(0, safe), (0, harmful * 99), (0, None)])
    said: list[str] = []
    chunks = client.completions.create(model="text", prompt=safe, stream=True)
    with pytest.raises(openai.APIError, match="blocked as harmful"):
        said.extend(chunk.choices[0].text or "" for chunk in chunks)
    assert "".join(said) == safe


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([PICTURE], "image_url"),
        ([{"type": "text", "text": "{}"}, PICTURE], "image_url"),
        ([], "has no text"),
        (None, "has no text"),
        ("{}" * 10_000, "9,999"),
    ],
    ids=["picture", "text and picture", "no part", "nothing", "large"],
)
def test_a_prompt_that_cannot_be_read_is_refused(
    client: openai.OpenAI,
    upstream: ModelServer,
    letters: tuple[str, str],
    content: Any,
    message: str,
) -> None:
    safe, _ = letters
    upstream.script = Script(whole=chat_of({"content": safe}))
    asked = asked_of(upstream)
    with pytest.raises(openai.UnprocessableEntityError, match=message):
        ask(client, json.loads(json.dumps(content).replace("{}", safe)))
    assert asked_of(upstream) == asked


def test_an_answer_that_cannot_be_read_is_not_given_out(
    client: openai.OpenAI, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, _ = letters
    sound = {"id": "1", "data": "AAAA", "expires_at": 1, "transcript": safe}
    upstream.script = Script(whole=chat_of({"content": None, "audio": sound}))
    with pytest.raises(openai.APIStatusError, match="audio"):
        ask(client, safe)
    upstream.script = Script(whole=chat_of({"content": safe * 9999}))
    with pytest.raises(openai.UnprocessableEntityError, match="9,999"):
        ask(client, safe)
    upstream.script = Script(deltas=[(0, safe), (0, {"audio": sound}), (0, None)])
    text, error = given_out(ask(client, safe, stream=True))
    assert text == [safe]
    assert "audio" in error


def test_calls_of_other_kinds_are_refused(
    client: openai.OpenAI, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    asked = asked_of(upstream)
    calls: list[Callable[[], Any]] = [
        lambda: client.embeddings.create(model="small", input=letters[0]),
        lambda: client.responses.create(model="small", input=letters[0]),
        lambda: client.responses.create(model="small", input=letters[0], stream=True),
        lambda: client.images.generate(model="small", prompt=letters[0]),
        lambda: client.post(
            "/messages",
            body={
                "model": "small",
                "max_tokens": 9,
                "messages": [{"role": "user", "content": "-"}],
            },
            cast_to=object,
        ),
    ]
    for call in calls:
        with pytest.raises(openai.UnprocessableEntityError, match="not read by this guardrail"):
            call()
    assert asked_of(upstream) == asked


class Engine:
    """What can happen to the guard."""

    def fails(*_: Any, **__: Any) -> Any:
        raise BackendError("the engine broke")

    def breaks(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of the guard")


@pytest.mark.parametrize("broken", [Engine.fails, Engine.breaks])
def test_a_guard_that_fails_lets_nothing_pass(
    client: openai.OpenAI,
    upstream: ModelServer,
    letters: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[..., Any],
) -> None:
    safe, _ = letters
    upstream.script = Script(whole=chat_of({"content": safe}))
    fine = AsyncGuard.score_batch

    async def breaks_at_answers(self: AsyncGuard, texts: Any, **options: Any) -> Any:
        return broken() if isinstance(texts[0], tuple) else await fine(self, texts, **options)

    monkeypatch.setattr(AsyncGuard, "score_batch", breaks_at_answers)
    asked = asked_of(upstream)
    with pytest.raises(openai.InternalServerError):
        ask(client, safe)
    assert asked_of(upstream) == asked + 1
    monkeypatch.setattr(AsyncGuard, "score_batch", broken)
    with pytest.raises(openai.InternalServerError):
        ask(client, safe)
    assert asked_of(upstream) == asked + 1
    monkeypatch.setattr(AsyncGuard, "score_batch", fine)
    upstream.script = Script(deltas=[(0, safe), (0, None)])
    with monkeypatch.context() as patch:
        patch.setattr(AsyncStream, "feed", broken)
        assert given_out_or_refused(client, safe) == []
    with monkeypatch.context() as patch:
        patch.setattr(AsyncStream, "__aenter__", broken)
        assert given_out_or_refused(client, safe) == []
    assert ask(client, safe, stream=True)


def given_out_or_refused(client: openai.OpenAI, prompt: str) -> list[str]:
    """What a stream says; it ends with an error, or does not begin."""
    try:
        chunks = ask(client, prompt, stream=True)
    except openai.APIError:
        return []
    return given_out(chunks)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"treshold": 0.5}, "treshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"bundle": "/no/such/folder"}, "/no/such/folder"),
        ({"mask_response_content": True}, "mask_response_content"),
        ({"unreachable_fallback": "fail_open"}, "unreachable_fallback"),
        ({"mode": "logging_only"}, "logging_only"),
        ({"mode": "pre_mcp_call"}, "pre_mcp_call"),
    ],
)
def test_the_proxy_does_not_start_with_settings_that_cannot_be_used(
    bundle: Path, upstream: ModelServer, settings: dict[str, Any], message: str
) -> None:
    guardrails = config(bundle, upstream)["guardrails"][:1]
    guardrails[0]["guardrail_name"] = "another"
    guardrails[0]["litellm_params"] |= settings
    with pytest.raises(SettingsError, match=message):
        init_guardrails_v2(guardrails, config_file_path="/no/config.yaml")
