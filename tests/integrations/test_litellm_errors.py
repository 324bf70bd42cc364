"""What LiteLLM tells of a model server's errors, which may quote what the model wrote."""

import asyncio
import os
from typing import Any

import pytest

from siren_runtime.errors import BackendError
from siren_runtime.serving.asynchronous import AsyncGuard
from tiny_bundle import HARM, make_alarm
from upstream import ModelServer, Script

pytest.importorskip("litellm", reason="LiteLLM is not installed: scripts/test-integrations litellm")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # and not one of the internet

import litellm
import openai
from fastapi import HTTPException
from litellm.exceptions import GuardrailRaisedException

from siren_serve.integrations.litellm import SirenGuardrail

QUOTED = HARM * 500


@pytest.fixture(scope="module")
def guardrail(tmp_path_factory: pytest.TempPathFactory) -> SirenGuardrail:
    """One that calls what is all z harmful, and none of LiteLLM's words."""
    bundle = make_alarm(tmp_path_factory.mktemp("alarm") / "bundle", 8)
    return SirenGuardrail("siren", ["post_call"], True, bundle=str(bundle), threshold=0.99)


def _asked(upstream: ModelServer, provider: str) -> dict[str, Any]:
    """A request, as LiteLLM sends it and as it hands it to the guardrail."""
    messages = [{"role": "user", "content": "a"}]
    where = {"api_base": upstream.url, "api_key": "none", "num_retries": 0}
    return {"model": f"{provider}/small", "messages": messages, **where}


def _told(
    guardrail: SirenGuardrail, upstream: ModelServer, provider: str = "groq", **error: str
) -> tuple[int, str] | None:
    """What stands in the place of a model server's 400: its status, and what it says.

    Of Groq, LiteLLM tells the whole body; of others, OpenAI's keys.
    """

    async def tell() -> HTTPException | None:
        asked = _asked(upstream, provider)
        upstream.script = Script(whole={"error": error}, status=400)
        with pytest.raises(openai.BadRequestError, match="not a call") as refused:
            await litellm.acompletion(**asked)
        return await guardrail.async_post_call_failure_hook(asked, refused.value, None)

    told = asyncio.run(tell())
    return None if told is None else (told.status_code, told.detail)


def test_an_error_that_quotes_harm_is_kept_back_and_its_status_stays(
    guardrail: SirenGuardrail, upstream: ModelServer
) -> None:
    assert _told(guardrail, upstream, message="not a call", code="tool_use_failed") is None
    told = _told(guardrail, upstream, message="not a call", failed_generation=QUOTED)
    assert told is not None
    assert told[0] == 400
    assert told[1].startswith("blocked as harmful: score 0.99")
    assert QUOTED not in told[1]


@pytest.mark.parametrize("provider", ["openai", "groq"])
@pytest.mark.parametrize("key", ["type", "code", "param"])
def test_what_stands_beside_an_errors_message_is_read_too(
    guardrail: SirenGuardrail, upstream: ModelServer, provider: str, key: str
) -> None:
    told = _told(guardrail, upstream, provider, message="not a call", **{key: QUOTED})
    assert told is not None
    assert told[0] == 400
    assert told[1].startswith("blocked as harmful")


@pytest.mark.parametrize(
    ("error", "said"),
    [(BackendError("the engine broke"), ": the engine broke"), (RecursionError("too deep"), "")],
)
def test_an_error_without_a_verdict_is_kept_back(
    guardrail: SirenGuardrail,
    upstream: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    said: str,
) -> None:
    async def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(AsyncGuard, "score_batch", fails)
    told = _told(guardrail, upstream, message="not a call")
    assert told == (400, f"no verdict, so nothing passes{said}")


def test_an_error_in_the_midst_of_a_stream_is_read_too(
    guardrail: SirenGuardrail, upstream: ModelServer
) -> None:
    async def given_out(message: str) -> list[Any]:
        asked = _asked(upstream, "openai")
        upstream.script = Script([(0, "a")], tail=[{"error": {"message": message}}])
        answer: Any = await litellm.acompletion(**asked, stream=True)
        read = guardrail.async_post_call_streaming_iterator_hook(None, answer, asked)
        return [chunk async for chunk in read]

    with pytest.raises(GuardrailRaisedException, match="blocked as harmful"):
        asyncio.run(given_out(QUOTED))
    with pytest.raises(openai.APIError, match="out of memory"):
        asyncio.run(given_out("out of memory"))


def test_errors_that_are_not_the_model_servers_cost_no_verdict(
    guardrail: SirenGuardrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(AsyncGuard, "score_batch")
    for error in (HTTPException(401, "no key"), GuardrailRaisedException("other", "blocked")):
        assert asyncio.run(guardrail.async_post_call_failure_hook({}, error, None)) is None
