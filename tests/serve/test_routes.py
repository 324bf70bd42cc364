"""Every interface answers its own client with the guard's verdicts."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from hypothesis import given
from hypothesis import strategies as st
from openai import NotFoundError, OpenAI, UnprocessableEntityError

from served import Running, eventually, running
from siren_runtime import Guard, ScoreResult
from siren_runtime.scoring.verdict import HeadJudge, Judge
from siren_runtime.text.reading import Limits
from siren_serve.guards import told_decision
from siren_serve.routes.classifiers import _predictions
from texts import CORPUS
from tiny_bundle import edit_manifest, make_bundle

ROUNDING = 1e-6
TEXTS = [text for text in CORPUS if text.strip()][:6]


def _close(score: float) -> Any:
    return pytest.approx(score, abs=ROUNDING)


@pytest.fixture(scope="module")
def openai(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none is asked for", max_retries=0)


def test_openais_client_gets_moderations(openai: OpenAI, guard: Guard) -> None:
    answer = openai.moderations.create(input=TEXTS, model="other")
    assert answer.model == "other"
    for text, result in zip(TEXTS, answer.results, strict=True):
        expected = guard.score(text)
        assert result.flagged is expected.is_harmful
        assert result.category_scores.to_dict() == {"harmful": _close(expected.score)}
        assert result.categories.violence is None  # unknown, which is not "none"
    (one,) = openai.moderations.create(input="text").results
    assert one.flagged is guard.score("text").is_harmful
    parts = [{"type": "text", "text": text} for text in ("te", "xt", " and more")]
    (joined,) = openai.moderations.create(input=parts).results  # type: ignore[arg-type]
    expected = guard.score("text\n and more").score
    assert joined.category_scores.to_dict() == {"harmful": _close(expected)}


def test_openais_client_lists_the_guards(openai: OpenAI) -> None:
    assert [model.id for model in openai.models.list()] == ["tiny", "other"]
    model = openai.models.retrieve("other")
    assert (model.id, model.model_dump()["ready"]) == ("other", True)  # which KServe's clients ask
    with pytest.raises(NotFoundError, match="only tiny, other"):
        openai.models.retrieve("third")


def test_what_a_moderation_cannot_read_is_an_error_and_no_verdict(openai: OpenAI) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(UnprocessableEntityError, match="image_url"):
        openai.moderations.create(input=[picture])  # type: ignore[list-item]
    with pytest.raises(UnprocessableEntityError, match=r"texts\[1\]"):
        openai.moderations.create(input=["good", "\x00" * 20_000])
    with pytest.raises(NotFoundError, match="only tiny, other"):
        openai.moderations.create(input="text", model="omni-moderation-latest")


CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "How do I"}]},
    {"role": "assistant", "content": "Pick it."},
]


# As LiteLLM and others give an answer, whose message clients send back with their next request.
SENT_BACK = {
    "role": "assistant",
    "reasoning_content": "Why?",
    "content": [{"type": "text", "text": "Pick it.", "cache_control": {"type": "ephemeral"}}],
    "thinking_blocks": [{"type": "thinking", "thinking": "Why?", "signature": "c2ln"}],
    "tool_calls": [
        {
            "id": "1",
            "type": "function",
            "function": {"name": "f", "arguments": "how"},
            "extra_content": {"google": {"thought_signature": "c2ln"}},
            "provider_specific_fields": {"thought_signature": "c2ln"},
        }
    ],
    "annotations": [{"type": "url_citation", "url_citation": {"title": "A page"}}],
    "provider_specific_fields": {"refusal": None, "thinking_blocks": None},
}


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"text": "hello"}, {"text": "hello"}),
        ({"prompt": "How do", "response": "I"}, {"prompt": "How do", "response": "I"}),
        ({"response": "only"}, {"response": "only"}),
        ({"messages": CONVERSATION[:2]}, {"text": "Be kind.\nHow do I"}),
        ({"messages": CONVERSATION}, {"prompt": "Be kind.\nHow do I", "response": "Pick it."}),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"arguments": "rm"}}]}
                ]
            },
            {"response": "rm"},
        ),
        ({"messages": [SENT_BACK]}, {"response": "Why?\nPick it.\nhow\nA page"}),
    ],
)
def test_a_text_is_scored_in_every_form(
    server: Running, guard: Guard, request_: dict[str, Any], text: dict[str, str]
) -> None:
    answer = server.client.post("/v1/score", json={**request_, "threshold": 0.3})
    expected = guard.score(**text, threshold=0.3)
    assert answer.status_code == 200
    assert answer.json() == {
        "model": "tiny",
        **expected.to_dict(),
        "score": _close(expected.score),
    }


def test_spans_are_asked_for_and_told(server: Running, guard: Guard) -> None:
    text = "How do I pick a lock?"
    answer = server.client.post("/v1/score", json={"text": text, "spans": [8]}).json()
    expected = guard.score(text, spans=[8]).to_dict()
    assert [span["tokens"] for span in answer["spans"]] == [8]
    assert answer["spans"][0]["score"] == _close(expected["spans"][0]["score"])


UNREADABLE = " ".join("\u200b".join(word) for word in ["unseen"] * 9)


def test_errors_of_a_list_are_counted_as_those_of_single_texts(server: Running) -> None:
    lines = [
        'siren_refusals_total{code="cannot_be_scored"}',
        'siren_verdicts_total{guard="tiny",tier="unreadable",verdict="unreadable"}',
    ]

    def counted(**asked: Any) -> list[float]:
        before = [server.metric(line) for line in lines]
        server.client.post("/v1/score", json={"threshold": 1, **asked})
        return [server.metric(line) - was for line, was in zip(lines, before, strict=True)]

    assert counted(text=UNREADABLE) == [1, 1]
    assert counted(inputs=["good", UNREADABLE, UNREADABLE, "x" * 300_000]) == [3, 2]
    turns = [{"role": "user", "content": f"{UNREADABLE} {number}"} for number in range(2)]
    assert counted(messages=turns) == [1, 3]  # each turn, and all of them
    assert counted(inputs=[{"messages": turns}]) == [1, 3]


def test_a_list_has_a_result_or_an_error_for_each_text(server: Running, guard: Guard) -> None:
    inputs = ["good", "x" * 300_000, {"prompt": "a", "response": "b"}, {"messages": CONVERSATION}]
    answer = server.client.post("/v1/score", json={"inputs": inputs, "long_text": "truncate"})
    first, second, third, fourth = answer.json()["results"]
    assert first["score"] == _close(guard.score("good").score)
    assert "300,000 bytes" in second["error"]["message"]
    assert third["score"] == _close(guard.score(prompt="a", response="b").score)
    assert fourth["tokens"] > 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "one of these"),
        ({"text": "a", "prompt": "b"}, "one of these"),
        ({"text": "a", "inputs": ["b"]}, "not both"),
        ({"inputs": []}, "no text to score"),
        ({"txt": "a"}, "unknown field `txt`"),
        ({"text": "a", "threshold": 2}, "<= 1.0"),
        ({"text": "a", "long_text": "all"}, "Invalid enum value 'all'"),
        ({"text": 1}, "Expected `str"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages[0] has no text"),
        ({"messages": [{"role": "user", "content": []}]}, r"messages[0] has no text"),
        ({"messages": [{"role": "user", "content": "a", "video": {}}]}, "unknown field `video`"),
        ({"messages": [{"role": "user", "content": "a", "audio": {}}]}, "messages[0] has audio"),
        ({"messages": [{"role": "user", "content": "a", "images": [1]}]}, "messages[0] has audio"),
        ({"text": "a", "spans": [4]}, ">= 8"),
        ({"text": "a", "spans": [*range(8, 17)]}, "length <= 8"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "'file'"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    server: Running, request_: dict[str, Any], message: str
) -> None:
    answer = server.client.post("/v1/score", json=request_)
    assert answer.status_code == 422
    assert set(answer.json()["error"]) == {"message", "type", "code", "param"}
    assert message in answer.json()["error"]["message"]


def test_clients_of_text_embeddings_inference_get_predictions(
    server: Running, guard: Guard
) -> None:
    one = server.client.post("/predict", json={"inputs": "hello"}).json()
    score = guard.score("hello").score
    assert {p["label"]: p["score"] for p in one} == {
        "harmful": _close(score),
        "safe": _close(1 - score),
    }
    assert one[0]["score"] >= one[1]["score"]
    batch = server.client.post("/predict", json={"inputs": [["a"], ["How do", "I"]]}).json()
    labels = {p["label"]: p["score"] for p in batch[1]}
    assert len(batch) == 2
    assert labels["harmful"] == _close(guard.score(prompt="How do", response="I").score)
    assert server.client.post("/predict", json={"inputs": ["a", "b", "c"]}).status_code == 422
    raw = {"inputs": "a", "raw_scores": True}
    assert server.client.post("/predict", json=raw).status_code == 422


def test_huggingface_hubs_client_gets_the_decision(server: Running, guard: Guard) -> None:
    client = InferenceClient(f"{server.url}/predict", token="none is asked for")
    found: Any = client.text_classification("hello")  # the first of the labels, as of an endpoint
    expected = guard.score("hello")
    assert found.label == ("harmful" if expected.is_harmful else "safe")
    assert found.score == _close(max(expected.score, 1 - expected.score))
    asked = {"inputs": "hello", "parameters": {"top_k": 1}}
    answer = server.client.post("/predict", json=asked)
    assert (answer.status_code, "top_k" in answer.text) == (422, True)


def test_clients_of_vllm_get_classes(server: Running, guard: Guard) -> None:
    answer = server.client.post("/classify", json={"model": "tiny", "input": TEXTS}).json()
    for text, found in zip(TEXTS, answer["data"], strict=True):
        expected = guard.score(text)
        assert found["label"] == ("harmful" if expected.is_harmful else "safe")
        assert found["probs"] == [_close(1 - expected.score), _close(expected.score)]
    assert answer["usage"]["prompt_tokens"] == sum(guard.score(text).tokens for text in TEXTS)


@given(score=st.floats(0, 1), threshold=st.floats(0, 1), is_known=st.booleans())
def test_the_likelier_label_is_the_guards_decision(
    score: float, threshold: float, is_known: bool
) -> None:
    decided = score >= threshold or (None if not is_known else False)
    first, second = _predictions(ScoreResult(score, decided, threshold, 1, risk=score))
    assert first.label == ("safe" if decided is False else "harmful")
    assert first.score >= second.score
    assert first.score + second.score == pytest.approx(1)


@pytest.mark.parametrize(("threshold", "label"), [(0.001, "harmful"), (0.999, "safe")])
def test_classifiers_decide_by_the_guards_threshold(
    tmp_path: Path, threshold: float, label: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    edit_manifest(bundle, lambda manifest: manifest.update(threshold=threshold))
    with running({"tiny": str(bundle)}) as server:
        first, _ = server.client.post("/predict", json={"inputs": "hello"}).json()
        (found,) = server.client.post("/classify", json={"input": "hello"}).json()["data"]
    assert (first["label"], found["label"]) == (label, label)
    assert (found["probs"][1] >= 0.5) == (label == "harmful")


def test_litellm_is_told_to_block_what_is_harmful_or_cannot_be_read(
    server: Running, guard: Guard
) -> None:
    def asked(**request: Any) -> dict[str, Any]:
        call = {"input_type": "request", "litellm_call_id": "1", "request_data": {}, **request}
        answer: dict[str, Any] = server.client.post(
            "/beta/litellm_basic_guardrail_api", json=call
        ).json()
        return answer

    by_verdict = {guard.score(text).is_harmful: text for text in [*TEXTS, "zz", "How", "bomb", "q"]}
    assert set(by_verdict) == {True, False}
    safe = by_verdict[False]
    assert asked(texts=[safe]) == {"action": "NONE", "texts": [safe]}
    blocked = asked(texts=[safe, by_verdict[True]])
    assert blocked["action"] == "BLOCKED"
    assert "harmful: score" in blocked["blocked_reason"]
    function = {"arguments": by_verdict[True], "provider_specific_fields": None}
    calls = [{"function": function, "provider_specific_fields": {"thought_signature": "c2ln"}}]
    assert asked(texts=[], tool_calls=calls)["action"] == "BLOCKED"
    assert asked(texts=[safe], images=["data:,"])["action"] == "BLOCKED"
    assert asked(texts=[])["action"] == "NONE"
    assert asked()["action"] == "BLOCKED"
    assert asked(text=safe)["action"] == "BLOCKED"

    def messages(**message: Any) -> dict[str, Any]:
        return asked(texts=[safe], structured_messages=[{"role": "user", **message}])

    assert messages(content=safe)["action"] == "NONE"
    assert messages(content=by_verdict[True])["action"] == "BLOCKED"
    assert messages(content=safe, reasoning_content=by_verdict[True])["action"] == "BLOCKED"
    sound = messages(content=[{"type": "input_audio", "input_audio": {"data": ""}}])
    assert "structured_messages cannot be read" in sound["blocked_reason"]
    assert messages(content=safe, a_new_key="b")["action"] == "BLOCKED"


def test_operators_are_told_what_runs_and_what_it_did(server: Running, guard: Guard) -> None:
    assert server.client.get("/health/live").json() == {"status": "live"}
    assert server.client.get("/health/ready").json() == {"status": "ready"}
    info = server.client.get("/info").json()
    files = {name: file.sha256 for name, file in guard.manifest.files.items()}
    assert info["guards"]["tiny"]["members"][0]["sha256"] == files
    assert info["guards"]["tiny"]["backend"] == "cpu"
    verdict = "harmful" if guard.score("hello").is_harmful else "safe"
    lines = [
        f'siren_verdicts_total{{guard="other",tier="",verdict="{verdict}"}}',
        'siren_run_seconds_count{guard="other",kind="score"}',
        'siren_requests_total{route="/v1/score",status="200"}',
        'siren_tokens_total{guard="other",kind="score"}',
    ]
    before = [server.metric(line) for line in lines]
    answer = server.client.post("/v1/score", json={"text": "hello", "model": "other"})
    assert answer.status_code == 200
    eventually(lambda: all(server.metric(m) > b for m, b in zip(lines, before, strict=True)))
    document = server.client.get("/openapi.json").json()
    assert {"/v1/score", "/v1/moderations", "/predict", "/classify", "/info"} <= set(
        document["paths"]
    )
    missing = server.client.get("/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    for path, options in (
        ("/v1/chat/completions", "with --upstream or --generate"),
        ("/v1/completions", "with --upstream"),
    ):
        message = server.client.post(path, json={}).json()["error"]["message"]
        assert message == f"{path} is answered by a server {options}"
    verb = server.client.post("/v1/models/tiny:explain", json={"instances": ["a"]})
    assert (verb.status_code, verb.json()["error"]["code"]) == (404, "not_found")
    assert "POST /v1/models/NAME:predict" in verb.json()["error"]["message"]
    wrong = server.client.get("/v1/score")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


def test_an_answer_is_decided_on_by_the_thresholds_of_responses(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    responses = {"threshold": 0.999, "tiers": []}
    edit_manifest(bundle, lambda manifest: manifest.update(threshold=0.001, responses=responses))
    with running({"tiny": str(bundle)}) as server:
        actions = {
            kind: server.client.post(
                "/beta/litellm_basic_guardrail_api", json={"texts": ["hello"], "input_type": kind}
            ).json()["action"]
            for kind in ("request", "response")
        }
        assert actions == {"request": "BLOCKED", "response": "NONE"}
        scored = server.client.post("/v1/score", json={"prompt": "a", "response": "b"}).json()
        assert (scored["is_harmful"], scored["threshold"], scored["as_response"]) == (
            (False, 0.999, True)
        )
        info = server.client.get("/info").json()
        told = {"threshold": 0.999, "tiers": {}, "spans": {}}
        assert info["guards"]["tiny"]["responses"] == told


def test_info_tells_which_backbone_was_read_and_which_the_head_names(tmp_path: Path) -> None:
    bundle, named = make_bundle(tmp_path / "bundle"), {"id": "org/model", "revision": "v1"}
    read = {"id": "model", "revision": None, "digest": "0" * 64, "named": named}
    edit_manifest(bundle, lambda manifest: manifest["backbone"].update(read))
    with running({"tiny": str(bundle)}) as server:
        (member,) = server.client.get("/info").json()["guards"]["tiny"]["members"]
    assert (member["base_model"], member["revision"]) == ("model", None)
    assert (member["backbone_digest"], member["head_base_model"]) == ("0" * 64, named)


def test_info_tells_from_which_score_spans_count(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    spans, stricter = (
        [{"tokens": 32, "threshold": first}, {"tokens": 64, "threshold": second}]
        for first, second in ((0.9, 0.8), (0.99, 0.95))
    )
    responses = {"threshold": 0.7, "tiers": [], "spans": stricter}
    edit_manifest(bundle, lambda manifest: manifest.update(spans=spans, responses=responses))
    for asked, expected in ((None, ({"32": 0.9, "64": 0.8}, {"32": 0.99, "64": 0.95})),
                            (False, ({}, {}))):  # fmt: skip
        with running({"tiny": str(bundle)}, spans=asked) as server:
            info = server.client.get("/info").json()["guards"]["tiny"]
            assert (info["spans"], info["responses"]["spans"]) == expected


@pytest.mark.parametrize(("asked", "expected"), [(False, {}), (True, {"32": 0.5})])
def test_info_tells_no_spans_that_count_for_another_head_alone(
    asked: bool, expected: dict[str, float]
) -> None:
    heads = {"first": HeadJudge(0.5, (), {}, {}), "second": HeadJudge(0.5, (), {32: 0.9}, {})}
    limits = Limits(spans=(32,), spans_asked=asked)
    assert told_decision(Judge(heads, limits))["spans"] == expected
