"""In front of a model server: what goes out of its own errors of 400 to 499."""

from typing import Any

import pytest
from openai import NotFoundError, RateLimitError

from proxied import Proxies, ask, client
from siren_runtime.errors import BackendError
from siren_serve.guards import Served
from siren_serve.proxy.upstream import UpstreamRefusal
from upstream import ModelServer, Script

pytestmark = pytest.mark.filterwarnings("ignore:.*re-encodes its text")

OPENAIS = {"message", "type", "code", "param"}
OWN = "the upstream refused the request with status {}"


def _refused(
    proxies: Proxies, upstream: ModelServer, prompt: str, whole: Any, **settings: Any
) -> dict[str, Any]:
    """What a client is told of an upstream's 400."""
    upstream.script = Script(whole=whole, status=400)
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    answer = proxies(**settings).client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    told: dict[str, Any] = answer.json()["error"]
    return told


@pytest.mark.parametrize("mode", ["block", "annotate", "log"])
def test_of_an_error_only_openais_keys_go_out(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], mode: str
) -> None:
    """Groq answers a call that its parser does not take with the model's own text."""
    safe, harmful = letters
    error = {"message": safe, "type": "invalid_request_error", "code": "tool_use_failed"}
    told = _refused(
        proxies,
        upstream,
        safe,
        {"error": {**error, "failed_generation": harmful * 9}, "answer": harmful * 9},
        mode=mode,
    )
    assert {key: told[key] for key in OPENAIS} == {**error, "param": None}
    assert told.keys() - OPENAIS == ({"siren"} if mode == "annotate" else set())


@pytest.mark.parametrize("key", ["message", "type", "code", "param"])
def test_what_an_error_says_is_read_as_an_answer_is(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], key: str
) -> None:
    safe, harmful = letters
    error = {"message": safe, "type": "t", "code": "c", "param": "p", key: harmful * 60}
    own = {"message": OWN.format(400), "type": "invalid_request_error", "code": "upstream_refused"}
    kept = {k: v for k, v in error.items() if k not in ("message", key)}  # which are names
    assert _refused(proxies, upstream, safe, {"error": error}) == {**own, "param": None, **kept}
    assert _refused(proxies, upstream, safe, {"error": error}, mode="log") == error
    annotated = _refused(proxies, upstream, safe, {"error": error}, mode="annotate")
    assert annotated.pop("siren")["is_harmful"] is True
    assert annotated == error


@pytest.mark.parametrize(
    "whole",
    [{"detail": "{}"}, {"error": "{}"}, {"error": ["{}"]}, {"error": None}, ["{}"], "{}", None, {}],
    ids=str,
)
def test_a_body_of_another_form_is_told_in_our_words(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], whole: Any
) -> None:
    assert _refused(proxies, upstream, letters[0], whole, mode="log") == {
        "message": OWN.format(400),
        "type": "invalid_request_error",
        "code": "upstream_refused",
        "param": None,
    }


def test_an_error_may_stand_by_itself_and_say_a_number(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    error = {"message": letters[0], "type": "BadRequestError", "code": 400, "param": None}
    alone = {"object": "error", **error}  # as SGLang has it
    assert _refused(proxies, upstream, letters[0], alone) == error


def test_a_long_message_is_cut(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    whole = {"error": {"message": letters[0] * 5000}}
    told = _refused(proxies, upstream, letters[0], whole, mode="log")
    assert told["message"] == letters[0] * 1000


@pytest.mark.parametrize("options", [{}, {"stream": True}], ids=["whole", "stream"])
@pytest.mark.parametrize("fail_open", [False, True])
def test_an_error_without_a_verdict_keeps_its_status(
    proxies: Proxies,
    upstream: ModelServer,
    letters: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    fail_open: bool,
    options: dict[str, Any],
) -> None:
    scored = Served.score_all

    async def breaks_at_answers(self: Served, texts: list[Any], **settings: Any) -> Any:
        if isinstance(texts[0], tuple):
            raise BackendError("the engine broke")
        return await scored(self, texts, **settings)

    monkeypatch.setattr(Served, "score_all", breaks_at_answers)
    error = {"message": "slow down", "type": "requests", "code": "rate", "param": None}
    upstream.script = Script(
        whole={"error": error}, status=429, headers={"retry-after": "7", "x-ratelimit-limit": "1"}
    )
    proxy = proxies(fail_open=fail_open)
    with pytest.raises(RateLimitError) as refused:
        ask(proxy, letters[0], **options)
    told = (
        {"siren": {"failed_open": "engine_failed"}} if fail_open else {"message": OWN.format(429)}
    )
    assert refused.value.body == error | told
    headers = refused.value.response.headers
    assert (headers["retry-after"], headers["x-ratelimit-limit"]) == ("7", "1")
    counted = "siren_failed_open_total{" if fail_open else "siren_refusals_total{"
    assert 'code="engine_failed"' in "".join(
        line for line in proxy.client.get("/metrics").text.splitlines() if line.startswith(counted)
    )


def test_of_models_an_error_says_what_the_upstream_says(
    proxies: Proxies, upstream: ModelServer
) -> None:
    upstream.script = Script(whole={"error": {"message": "no such model"}}, status=404)
    with pytest.raises(NotFoundError, match="no such model") as error:
        client(proxies()).models.retrieve("a")
    assert error.value.code == "upstream_refused"


def test_names_alone_are_no_text() -> None:
    said = {"message": "no", "type": "a b c", "code": "context_length_exceeded", "param": 3}
    refusal = UpstreamRefusal(400, {}, said)
    assert refusal.text == "no\na b c"
    assert refusal.without_text().error == {"code": "context_length_exceeded", "param": 3}
