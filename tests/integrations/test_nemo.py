"""NeMo Guardrails with the guard as its rails, in front of a model server on the loopback."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pages import block
from served import running
from siren_runtime import Guard
from siren_runtime.errors import BackendError
from siren_runtime.scoring.call import Text
from siren_runtime.serving.asynchronous import AsyncGuard
from upstream import ModelServer, Script, chat_of

pytest.importorskip(
    "nemoguardrails", reason="NeMo Guardrails is not installed: scripts/test-integrations nemo"
)

import yaml
from nemoguardrails import LLMRails, RailsConfig

from siren_serve.integrations.guarding import Guarding, SettingsError

PAGE = ("integrations.md", "NeMo Guardrails")
REFUSED = "I'm sorry, I can't respond to that."
FAILED = "I'm sorry, an internal error has occurred."


@pytest.fixture
def make(bundle: Path, upstream: ModelServer, tmp_path: Path) -> Callable[..., LLMRails]:
    """Make rails of the page's files, with this bundle, this model server, and other `output`."""

    def make(
        code: tuple[str, str] = ("", ""), passthrough: bool = False, **output: Any
    ) -> LLMRails:
        config = yaml.safe_load(block(*PAGE, "yaml"))
        config["models"][0]["parameters"]["base_url"] = upstream.url
        config["rails"]["output"] |= output
        config["passthrough"] = passthrough
        (tmp_path / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        (tmp_path / "rails.co").write_text(block(*PAGE, "colang"))
        text = block(*PAGE, "python").replace("engines/minilm/bundle", str(bundle))
        (tmp_path / "config.py").write_text(text.replace(*code))
        return LLMRails(RailsConfig.from_path(str(tmp_path)))

    return make


def ask(rails: LLMRails, content: Any, **options: Any) -> Any:
    return rails.generate(messages=[{"role": "user", "content": content}], **options)


def streamed(rails: LLMRails, content: str) -> tuple[list[str], dict[str, Any] | None]:
    """What goes out of a stream, and the error that ends it."""

    async def run() -> list[str]:
        messages = [{"role": "user", "content": content}]
        return [chunk async for chunk in rails.stream_async(messages=messages)]

    chunks = asyncio.run(run())
    if chunks and chunks[-1].startswith('{"error"'):
        return chunks[:-1], json.loads(chunks[-1])["error"]
    return chunks, None


def test_what_is_harmless_passes(
    make: Callable[..., LLMRails], upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, _ = letters
    upstream.script = Script(whole=chat_of({"content": safe * 5}))
    assert ask(make(), safe)["content"] == safe * 5


def test_a_harmful_prompt_is_refused_before_the_model_is_asked(
    make: Callable[..., LLMRails], upstream: ModelServer, letters: tuple[str, str]
) -> None:
    asked = len(upstream.asked)
    assert ask(make(), letters[1] * 9)["content"] == REFUSED
    assert len(upstream.asked) == asked


def test_a_harmful_answer_is_not_given_out(
    make: Callable[..., LLMRails], upstream: ModelServer, letters: tuple[str, str]
) -> None:
    upstream.script = Script(whole=chat_of({"content": letters[1] * 99}))
    assert ask(make(), letters[0])["content"] == REFUSED


@pytest.mark.parametrize("options", [{}, {"options": {"log": {}}}], ids=["message", "response"])
def test_what_the_model_reasoned_is_read_too_and_not_given_out(
    make: Callable[..., LLMRails],
    upstream: ModelServer,
    letters: tuple[str, str],
    options: dict[str, Any],
) -> None:
    safe, harmful = letters
    upstream.script = Script(whole=chat_of({"content": safe, "reasoning_content": harmful * 99}))
    answer = ask(make(), safe, **options)
    assert harmful * 9 not in str(answer)
    assert REFUSED in str(answer)
    upstream.script = Script(whole=chat_of({"content": safe, "reasoning_content": safe * 7}))
    assert safe * 7 in str(ask(make(), safe, **options))


def test_an_answer_is_scored_behind_what_the_user_said(
    make: Callable[..., LLMRails], upstream: ModelServer, guard: Guard, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    prompt = next(
        text
        for n in range(1, 30)
        for text in [safe * 30 + harmful * n]
        if not guard.score(text).is_harmful
        and guard.score(prompt=text, response=harmful * 2).is_harmful
    )
    upstream.script = Script(whole=chat_of({"content": harmful * 2}))
    assert ask(make(), prompt)["content"] == REFUSED


class Engine:
    """What can happen to the guard."""

    def fails(*_: Any, **__: Any) -> Any:
        raise BackendError("the engine broke")

    def breaks(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of the guard")


@pytest.mark.parametrize("broken", [Engine.fails, Engine.breaks])
def test_a_guard_that_fails_lets_nothing_pass(
    make: Callable[..., LLMRails],
    upstream: ModelServer,
    letters: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[..., Any],
) -> None:
    safe, _ = letters
    rails = make()
    fine = AsyncGuard.score_batch

    async def breaks_at_answers(self: AsyncGuard, texts: Any, **options: Any) -> Any:
        return broken() if isinstance(texts[0], tuple) else await fine(self, texts, **options)

    monkeypatch.setattr(AsyncGuard, "score_batch", breaks_at_answers)
    message = {"content": safe * 5, "reasoning_content": safe * 7}
    upstream.script = Script(whole=chat_of(message), deltas=[(0, safe * 5), (0, None)])
    assert ask(rails, safe)["content"] == FAILED
    chunks, error = streamed(rails, safe)
    assert chunks == []
    assert error is not None
    assert error["code"] == "rail_execution_failure"
    monkeypatch.setattr(AsyncGuard, "score_batch", broken)
    asked = len(upstream.asked)
    assert ask(rails, safe)["content"] == FAILED
    assert len(upstream.asked) == asked


@pytest.mark.parametrize(
    "content",
    ["x" * (300 << 10), [{"type": "image_url", "image_url": {"url": "data:,"}}]],
    ids=["large", "picture"],
)
def test_a_prompt_that_cannot_be_read_is_not_answered(
    make: Callable[..., LLMRails], upstream: ModelServer, content: Any
) -> None:
    asked = len(upstream.asked)
    assert ask(make(), content)["content"] == FAILED
    assert len(upstream.asked) == asked


def test_a_stream_goes_out_in_chunks_that_were_read(
    make: Callable[..., LLMRails], upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    rails = make()
    upstream.script = Script(deltas=[(0, f"{safe} ")] * 40 + [(0, None)])
    assert "".join(streamed(rails, safe)[0]).strip() == " ".join([safe] * 40)
    deltas = [(0, f"{safe} ")] * 64 + [(0, f"{harmful} ")] * 64 + [(0, None)]
    upstream.script = Script(deltas=deltas)
    chunks, error = streamed(rails, safe)
    assert safe in "".join(chunks)
    assert harmful not in "".join(chunks)
    assert error is not None
    assert error["code"] == "content_blocked"
    asked = len(upstream.asked)
    streamed(rails, harmful * 9)  # the refusal, or an error if that is harmful behind it
    assert len(upstream.asked) == asked


def test_tool_calls_are_read_and_not_given_out(
    make: Callable[..., LLMRails], upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    rails = make(("bundle=", "threshold=0.999, bundle="), passthrough=True)
    for text, content in ((safe, ""), (harmful * 99, REFUSED)):
        function = {"name": "f", "arguments": f'{{"what": "{text}"}}'}
        call = {"id": "1", "type": "function", "function": function}
        upstream.script = Script(whole=chat_of({"content": "", "tool_calls": [call]}))
        answer = ask(rails, safe)
        assert answer["content"] == content
        assert ("tool_calls" in answer) == (text == safe)


def test_arguments_are_read_as_who_parses_them_reads_them(
    make: Callable[..., LLMRails],
    upstream: ModelServer,
    letters: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In JSON a new line is a letter of the word behind it."""
    safe, read, check = letters[0], list[Text](), Guarding.check

    async def told(self: Guarding, texts: Sequence[Text]) -> None:
        read.extend(texts)
        await check(self, texts)

    monkeypatch.setattr(Guarding, "check", told)
    function = {"name": "f", "arguments": json.dumps({"what": f"{safe}\n{safe}"})}
    call = {"id": "1", "type": "function", "function": function}
    upstream.script = Script(whole=chat_of({"content": "", "tool_calls": [call]}))
    answer = ask(make(("bundle=", "threshold=0.999, bundle="), passthrough=True), safe)
    assert "tool_calls" in answer
    responses = [text[1] or "" for text in read if not isinstance(text, str)]
    assert any(f"{safe}\n{safe}" in response for response in responses)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"code": ("bundle=", "treshold=0.5, bundle=")}, "treshold"),
        ({"code": ("bundle=", "threshold=2.0, bundle=")}, "threshold"),
        ({"code": ("bundle=", "stride=9, bundle=")}, "stride"),
        ({"code": ("bundle=", "max_streams=9, bundle=")}, "max_streams"),
        ({"code": ("bundle=", 'aggregation="mean", bundle=')}, "aggregation"),
        ({"streaming": {"enabled": True}}, "stream_first"),
        ({"parallel": True}, "parallel"),
    ],
)
def test_settings_with_which_text_could_go_out_unread_are_refused(
    make: Callable[..., LLMRails], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeError) as error:
        make(**settings)
    assert isinstance(error.value.__cause__, SettingsError)
    assert message in str(error.value.__cause__)


@pytest.mark.parametrize(("engine", "label"), [("kserve", "is_harmful"), ("vllm", "harmful")])
def test_a_classifier_rail_asks_a_server(
    bundle: Path, upstream: ModelServer, letters: tuple[str, str], engine: str, label: str
) -> None:
    safe, harmful = letters
    config = yaml.safe_load(block("integrations.md", "NeMo Guardrails over HTTP", "yaml"))
    config["models"] = yaml.safe_load(block(*PAGE, "yaml"))["models"]
    config["models"][0]["parameters"]["base_url"] = upstream.url
    with running({"guard": str(bundle)}) as server:
        asked = {"engine": engine, "blocked_labels": [label], "base_url": server.url}
        config["rails"]["config"]["hf_classifier"]["siren"] |= asked
        rails = LLMRails(RailsConfig.from_content(yaml_content=json.dumps(config)))
        upstream.script = Script(whole=chat_of({"content": safe * 5}))
        assert ask(rails, safe)["content"] == safe * 5
        assert ask(rails, harmful)["content"] == REFUSED
        upstream.script = Script(whole=chat_of({"content": harmful * 5}))
        assert ask(rails, safe)["content"] == REFUSED
