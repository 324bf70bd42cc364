"""siren serve --generate: OpenAI's client gets what the generator gives, and no harm."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from browser import CHROMIUM, browser_tab
from served import Running, running
from siren_runtime import GuardedGenerator, Sampling
from siren_serve.settings import GenerateSettings

PROMPT = "The history of bread begins"
TOKENS = 12
ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": TOKENS,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def server(grafted: Path) -> Iterator[Running]:
    settings = GenerateSettings(folder=str(grafted), name="tiny", threshold=1.0, max_tokens=40)
    with running({}, generate=settings) as served:
        yield served


def _client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def _pieces(guarded: GuardedGenerator, threshold: float = 1.0) -> list[Any]:
    sampling = Sampling(temperature=0)
    return list(guarded.generate(PROMPT, max_tokens=TOKENS, sampling=sampling, threshold=threshold))


def test_an_answer_comes_whole_and_in_chunks(server: Running, guarded: GuardedGenerator) -> None:
    pieces, client = _pieces(guarded), _client(server.url)
    answer = client.chat.completions.create(**ASKED)
    text = "".join(piece.text for piece in pieces)
    assert answer.choices[0].message.content == text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(pieces)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**ASKED, stream=True, stream_options=options))
    *told, usage = chunks
    first, *rest, last = [chunk.choices[0] for chunk in told]
    assert [choice.delta.content for choice in rest] == [piece.text for piece in pieces]
    assert [choice.siren["score"] for choice in rest] == [piece.score for piece in pieces]
    assert first.siren["prompt"]["is_harmful"] is False
    assert last.finish_reason == answer.choices[0].finish_reason
    assert usage.usage.completion_tokens == len(pieces)


def test_a_harmful_prompt_and_a_harmful_answer_are_filtered(
    grafted: Path, guarded: GuardedGenerator
) -> None:
    generation = guarded.generate(PROMPT, max_tokens=TOKENS, threshold=1.0)
    peak = max(piece.score for piece in _pieces(guarded))
    settings = GenerateSettings(folder=str(grafted), name="tiny", threshold=0.0)
    with (
        running({}, generate=settings) as server,
        pytest.raises(openai.BadRequestError, match="blocked as harmful"),
    ):
        _client(server.url).chat.completions.create(**ASKED)
    assert peak > generation.prompt.score
    settings = GenerateSettings(folder=str(grafted), name="tiny", threshold=peak)
    with running({}, generate=settings) as server:
        answer = _client(server.url).chat.completions.create(**ASKED)
        assert answer.choices[0].finish_reason == "content_filter"
        expected = "".join(piece.text for piece in _pieces(guarded, peak))
        assert answer.choices[0].message.content == expected
        assert server.metric('siren_proxied_harmful_total{mode="block",what="answer"}') == 1


def test_a_draw_from_the_likeliest_one_is_the_likeliest(server: Running) -> None:
    client = _client(server.url)
    expected = client.chat.completions.create(**ASKED).choices[0].message.content
    drawn = {**ASKED, "temperature": 1.5, "extra_body": {"top_k": 1}}
    assert client.chat.completions.create(**drawn).choices[0].message.content == expected


def _assert_moderation(found: Any, prompt: float, answer: float) -> None:
    for part, score in ((found.input, prompt), (found.output, answer)):
        assert (part.type, part.model) == ("moderation_results", "tiny")
        (result,) = part.results
        assert result.category_scores == {"harmful": pytest.approx(score, abs=1e-6)}
        assert result.categories == {"harmful": result.flagged}
        assert result.category_applied_input_types == {"harmful": ["text"]}


def test_openais_client_gets_the_moderation_that_it_asks_for(
    server: Running, grafted: Path, guarded: GuardedGenerator
) -> None:
    generation = guarded.generate(
        PROMPT, max_tokens=TOKENS, sampling=Sampling(temperature=0), threshold=1.0
    )
    scores = [piece.score for piece in generation]
    asked = {**ASKED, "moderation": {"model": "any", "policy": {"output": {"mode": "block"}}}}
    client = _client(server.url)
    found = client.chat.completions.create(**asked).moderation
    assert found is not None
    _assert_moderation(found, generation.prompt.score, scores[-1])
    assert not found.input.results[0].flagged
    *rest, last = client.chat.completions.create(**asked, stream=True)
    assert last.choices == []
    _assert_moderation(last.moderation, generation.prompt.score, scores[-1])
    assert all(chunk.moderation is None for chunk in rest)
    assert client.chat.completions.create(**ASKED).moderation is None
    settings = GenerateSettings(folder=str(grafted), name="tiny", threshold=max(scores))
    with running({}, generate=settings) as strict:
        cut = _client(strict.url).chat.completions.create(**asked)
    assert cut.choices[0].finish_reason == "content_filter"
    assert cut.moderation.output.results[0].flagged
    assert not cut.moderation.input.results[0].flagged


@pytest.mark.parametrize(
    "change",
    [
        {"n": 2},
        {"seed": 2**40},
        {"moderation": {"model": "any", "policy": {"output": {"mode": "score"}}}},
        {"moderation": {"model": "any", "policy": {"inputs": {"mode": "block"}}}},
        {"moderation": {"policy": None}},
        {"stop": "."},
        {"min_p": 0.1},
        {"ignore_eos": True},
        {"a_key_of_tomorrow": "x"},
        {"tools": [{"type": "function"}]},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": "hi"},
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_p": 2},
        {"top_k": -1},
        {"repetition_penalty": 0},
    ],
)
def test_what_is_not_done_is_refused(server: Running, change: dict[str, Any]) -> None:
    response = server.client.post("/v1/chat/completions", json={**ASKED, **change})
    assert response.status_code == 422
    assert response.json()["error"]["message"]


def test_who_goes_ends_the_generation(server: Running) -> None:
    asked = {**ASKED, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=asked) as response:
        next(response.iter_bytes())
    answer = _client(server.url).chat.completions.create(**ASKED)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_the_page_asks_the_model_and_shows_the_scores_of_its_own_pass(
    server: Running, guarded: GuardedGenerator, tmp_path: Path
) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    generation = guarded.generate(PROMPT, max_tokens=TOKENS)
    with browser_tab(tmp_path / "profile") as tab:
        tab.send("Page.navigate", url=server.url)
        tab.wait_for("typeof info !== 'undefined' && !!info")
        assert tab.evaluate("$('guard').value") == "tiny"
        assert tab.evaluate("$('ask').hidden") is False
        tab.evaluate("$('prompt').focus()")
        tab.send("Input.insertText", text=PROMPT)
        tab.evaluate("$('ask').click()")
        tab.wait_for("!!whole && $('stop').disabled")
        pieces = tab.evaluate("pieces.map((piece) => [piece.text, piece.score])")
        shown = tab.evaluate("$('text').value")
        assert shown == "".join(text for text, _ in pieces)
        assert pieces
        assert all(0 <= score <= 1 for _, score in pieces)
        assert tab.evaluate("whole.tokens") > len(pieces) / 2
        assert tab.evaluate("asked.score") == pytest.approx(generation.prompt.score, abs=1e-6)
        assert f"Prompt{generation.prompt.score:.3f}" in tab.evaluate("$('facts').textContent")
        assert tab.evaluate("$('score').textContent") == f"{tab.evaluate('whole.score'):.3f}"
        assert tab.errors() == []


def test_a_generator_says_what_it_is(server: Running, guarded: GuardedGenerator) -> None:
    found = server.client.get("/info").json()
    assert found["guards"] == {}
    assert found["generator"]["threshold"] == 1.0
    assert found["generator"]["base_model"] == guarded.manifest.backbone.id


def test_a_generator_says_the_thresholds_of_responses_if_it_goes_by_them(copied: Path) -> None:
    file = copied / "guard.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    responses = {"threshold": 0.9, "tiers": []}
    next(iter(manifest["decisions"].values()))["responses"] = responses
    file.write_text(json.dumps(manifest), encoding="utf-8")
    told = []
    for threshold in (None, 0.7):
        settings = GenerateSettings(folder=str(copied), name="tiny", threshold=threshold)
        with running({}, generate=settings) as server:
            told.append(server.client.get("/info").json()["generator"]["responses"])
    assert told == [{"threshold": 0.9, "tiers": {}, "spans": {}}, None]


def test_without_a_guard_other_routes_say_so(server: Running) -> None:
    assert server.client.get("/health/ready").status_code == 200
    response = server.client.post("/v1/moderations", json={"input": "hello"})
    assert response.status_code == 404
    assert "only a generator" in response.json()["error"]["message"]
    assert server.client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    model = server.client.get("/v1/models/tiny").json()
    assert (model["id"], model["ready"]) == ("tiny", True)
    assert server.client.get("/v1/models/other").status_code == 404


def test_a_key_that_stands_twice_is_refused(server: Running) -> None:
    said = '{"role": "user", "content": "a", "content": "b"}'
    answer = server.client.post("/v1/chat/completions", content=f'{{"messages": [{said}]}}')
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "repeated_key")
