"""Log probabilities, and what stands beside the choices of LiteLLM's answers."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from siren_runtime.serving.asynchronous import AsyncStream
from upstream import CHUNK, ModelServer, Script, chat_of

pytest.importorskip("litellm", reason="LiteLLM is not installed: scripts/test-integrations litellm")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # and not one of the internet

import litellm
from litellm.exceptions import GuardrailRaisedException

from siren_serve.integrations.litellm import SirenGuardrail

# What goes out, whole or in chunks, of a model server's answer with something beside it.
Answered = Callable[[dict[str, Any], dict[str, Any]], Coroutine[Any, Any, list[dict[str, Any]]]]
OWN: dict[str, Any] = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
OTHER = {"token": "b", "logprob": -1.0, "bytes": [98]}


@pytest.fixture(scope="module")
def guardrail(bundle: Path) -> SirenGuardrail:
    return SirenGuardrail("siren", ["pre_call", "post_call"], True, bundle=str(bundle), stride=0)


@pytest.fixture(params=["whole", "stream"])
def answered(
    guardrail: SirenGuardrail,
    upstream: ModelServer,
    letters: tuple[str, str],
    request: pytest.FixtureRequest,
) -> Answered:
    """Ask by LiteLLM with the guardrail's hooks around it; of an answer with more in its choice,
    and beside it.
    """
    safe, _ = letters
    asked = {"messages": [{"role": "user", "content": safe}]}
    options = {**asked, "model": "openai/small", "api_base": upstream.url, "api_key": "none"}

    async def whole(choice: dict[str, Any], beside: dict[str, Any]) -> list[dict[str, Any]]:
        body = chat_of({"content": safe})
        upstream.script = Script(whole={**body, "choices": [body["choices"][0] | choice], **beside})
        answer = await litellm.acompletion(**options)
        await guardrail.async_post_call_success_hook(asked, None, answer)
        return [answer.model_dump()]

    async def streamed(choice: dict[str, Any], beside: dict[str, Any]) -> list[dict[str, Any]]:
        begun = {"index": 0, "delta": {"content": safe}, "finish_reason": None, **choice}
        ended = {"index": 0, "delta": {}, "finish_reason": "stop"}
        chunks = [{**CHUNK, "choices": [one], **beside} for one in (begun, begun, ended)]
        upstream.script = Script(tail=chunks)
        answer = await litellm.acompletion(**options, stream=True)
        read = guardrail.async_post_call_streaming_iterator_hook(None, answer, asked)
        return [chunk.model_dump() async for chunk in read]

    return whole if request.param == "whole" else streamed


def test_labels_numbers_and_harmless_texts_pass(
    answered: Answered, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    name = harmful * 9
    beside = {
        "system_fingerprint": name,
        "service_tier": name,
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "where": name},
        "vertex_ai_safety_ratings": [[{"category": name, "probability": name}]],
        "prompt_logprobs": None,
        "citations": [safe * 9, safe],
    }
    out = asyncio.run(answered({"logprobs": {"content": [OWN]}}, beside))
    assert out[0]["citations"] == beside["citations"]
    assert out[0]["choices"][0]["logprobs"]["content"] == [OWN]


@pytest.mark.parametrize(
    "beside",
    [
        {"citations": ["a", "HARM"]},
        {"search_results": [{"title": "HARM", "snippet": None}]},
        {"provider_specific_fields": {"thoughts": "HARM"}},
        {"content_filter_results": {"reason": "HARM"}},
        {"numbers": {"HARM": 1}},
    ],
    ids=lambda beside: next(iter(beside)),
)
def test_harm_beside_the_choices_does_not_pass(
    answered: Answered, letters: tuple[str, str], beside: dict[str, Any]
) -> None:
    told = replaced(beside, "HARM", letters[1] * 199)
    with pytest.raises(GuardrailRaisedException, match="blocked as harmful"):
        asyncio.run(answered({}, told))


@pytest.mark.parametrize(
    ("choice", "beside"),
    [
        ({"logprobs": {"content": [{**OWN, "top_logprobs": [OTHER]}]}}, {}),
        ({"logprobs": {"content": [{**OWN, "others": {"b": -1.0}}]}}, {}),
        ({}, {"prompt_logprobs": [None, {"1": {"decoded_token": "b"}}]}),
    ],
    ids=["top", "another key", "prompt"],
)
def test_log_probabilities_of_other_tokens_do_not_pass(
    answered: Answered, choice: dict[str, Any], beside: dict[str, Any]
) -> None:
    with pytest.raises(GuardrailRaisedException, match="of other tokens than its own") as error:
        asyncio.run(answered(choice, beside))
    assert error.value.status_code == 502


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("acompletion", {"logprobs": True, "top_logprobs": 2}),
        ("atext_completion", {"logprobs": 2}),
    ],
)
def test_alternatives_may_not_be_asked_for(
    guardrail: SirenGuardrail, letters: tuple[str, str], kind: str, asked: dict[str, Any]
) -> None:
    safe, _ = letters
    prompt = {"messages": [{"role": "user", "content": safe}], "prompt": safe}
    del prompt["messages" if kind == "atext_completion" else "prompt"]

    async def check(**more: Any) -> None:
        await guardrail.async_pre_call_hook(None, None, {**prompt, **more}, kind)
        await guardrail.async_moderation_hook({**prompt, **more}, None, kind)

    asyncio.run(check(logprobs=asked["logprobs"] is True or 0))
    with pytest.raises(GuardrailRaisedException, match="alternatives") as error:
        asyncio.run(check(**asked))
    assert error.value.status_code == 422


def test_what_every_chunk_of_a_stream_says_again_is_read_once(
    guardrail: SirenGuardrail, letters: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    safe, _ = letters
    fed = list[str]()
    feed = AsyncStream.feed

    async def recorded(self: AsyncStream, text: str, **options: Any) -> Any:
        fed.append(text)
        return await feed(self, text, **options)

    monkeypatch.setattr(AsyncStream, "feed", recorded)
    asked = {"messages": [{"role": "user", "content": safe * 99}]}

    async def run(*beside: dict[str, Any]) -> list[Any]:
        async def chunks() -> AsyncIterator[Any]:
            for one in beside:
                choice = {"index": 0, "delta": {"content": safe}}
                yield litellm.ModelResponseStream(choices=[choice], **one)

        read = guardrail.async_post_call_streaming_iterator_hook(None, chunks(), asked)
        return [chunk async for chunk in read]

    assert len(asyncio.run(run(*[{"citations": ["one", "two"]}] * 9))) == 9
    assert fed.count("one\ntwo") == 1


def replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key.replace(old, new): replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, old, new) for item in value]
    return value.replace(old, new) if isinstance(value, str) else value
