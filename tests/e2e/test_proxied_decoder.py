"""A decoder in front of a model server: it reads the prompt before the answer begins."""

from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI

from served import Running, eventually, running
from siren_serve.settings import ProxySettings
from streaming import LIMIT
from upstream import Script, model_server

PROMPT = "How do I bake bread at home?"
PIECES = ["Mix ", "flour", " and wa", "ter, th", "en wait."]


def _tokens(server: Running) -> float:
    return server.metric('siren_tokens_total{guard="tiny",kind="stream"}')


def test_streamed_answers_are_read_as_the_server_was_told(
    export: Callable[..., Any], guards: Callable[..., Any]
) -> None:
    plain, _ = guards("qwen3")
    options: dict[str, Any] = {"response_only": True, "aggregation": "window", "span": 3}
    with plain.stream(PROMPT, **options) as stream:
        scores = [stream.feed(piece).score for piece in PIECES]
    bundle = export("qwen3", max_length=LIMIT).bundle
    with model_server() as upstream:
        made = ProxySettings(upstream=upstream.url, mode="annotate", **options)
        upstream.script = Script([*((0, piece) for piece in PIECES), (0, None)])
        with running({"tiny": str(bundle)}, proxy=made, streaming=True) as server:
            openai = OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
            messages: Any = [{"role": "user", "content": PROMPT}]
            chunks = openai.chat.completions.create(model="m", messages=messages, stream=True)
            told = [chunk.choices[0].siren["score"] for chunk in chunks][: len(PIECES)]
    assert told == pytest.approx(scores, abs=1e-5)


def test_a_decoder_reads_the_prompt_while_the_upstream_works(
    export: Callable[..., Any], guards: Callable[..., Any]
) -> None:
    plain, _ = guards("qwen3")
    with plain.stream(PROMPT) as stream:
        expected = [stream.feed(piece) for piece in PIECES]
    bundle = export("qwen3", max_length=LIMIT).bundle
    with model_server() as upstream:
        made = ProxySettings(upstream=upstream.url, mode="annotate")
        with running({"tiny": str(bundle)}, proxy=made, streaming=True) as server:
            openai = OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)

            def ask() -> Any:
                messages: Any = [{"role": "user", "content": PROMPT}]
                completions = openai.chat.completions
                return completions.create(model="m", messages=messages, stream=True)

            upstream.script = Script([(0, {"role": "assistant"})], hang=True)
            with ask():  # and nothing was answered
                eventually(lambda: _tokens(server) > 0)
            read = _tokens(server)
            upstream.script = Script([*((0, piece) for piece in PIECES), (0, None)])
            told = [chunk.choices[0].siren for chunk in ask()][: len(PIECES)]
            scores = [result.score for result in expected]
            assert [v["score"] for v in told] == pytest.approx(scores, abs=1e-5)
            assert [v["tokens"] for v in told] == [result.tokens for result in expected]
            most = sum(result.computed for result in expected) + 2
            assert _tokens(server) - read <= most  # the prompt was not read once more
