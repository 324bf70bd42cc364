"""What a guarded generator says is of all of the text, of the token that decided, or an error."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from generators import need_genai
from siren_command import siren
from siren_runtime import (
    BackendError,
    BundleError,
    Generation,
    GuardedGenerator,
    InputError,
    Patience,
    Sampling,
)
from siren_runtime.text.invisible import CutWords

need_genai()
PROMPT = "The history of bread begins"
HIDDEN = "T\u200bh\u200be h\u200bi\u200bs\u200bt\u200bo\u200br\u200by"


@pytest.mark.parametrize("chat", [True, False])
def test_a_nul_which_would_end_the_text_is_refused(guarded: GuardedGenerator, chat: bool) -> None:
    for read in (guarded.generate, guarded.read):
        with pytest.raises(InputError, match=r"U\+0000"):
            read("bread\0 and more", chat=chat)
    with pytest.raises(InputError, match="character 2 of the text"):
        guarded.read(PROMPT, "OK\0 and what comes behind", chat=chat)


@pytest.mark.parametrize(
    "beside",
    [
        {"content": "Be\0 kind"},
        {"name": "a\0"},
        {"name": "\\\0"},
        {"tool_calls": [{"function": {"name": "f", "arguments": '{"a": "\0"}'}}]},
        {"tool_calls": [{"function": {"name": "f", "arguments": '{"a": "\\u0000"}'}}]},
        {"tool_calls": [{"function": {"name": "f", "arguments": {"a\0": 1}}}]},
    ],
)
def test_a_nul_in_any_field_of_any_message_is_refused(
    guarded: GuardedGenerator, beside: dict[str, Any]
) -> None:
    messages: list[Any] = [
        {"role": "user", "content": PROMPT},
        {"role": "user", "content": "And?", **beside},
    ]
    for read in (guarded.generate, guarded.read):
        with pytest.raises(InputError, match=r"^messages\[1\] holds U\+0000, behind which"):
            read(messages)


def test_a_text_about_a_nul_is_none(guarded: GuardedGenerator) -> None:
    assert guarded.read([{"role": "user", "content": "What is \\u0000?"}]).tokens


def test_a_prompt_whose_words_are_cut_has_no_verdict_and_no_response(
    guarded: GuardedGenerator,
) -> None:
    with pytest.raises(InputError, match="the prompt has no verdict: invisible characters cut"):
        guarded.generate(HIDDEN, max_tokens=3)
    result = guarded.read(HIDDEN)
    assert (result.unknown, result.is_harmful, result.tier) == (1.0, None, "unreadable")
    result = guarded.read(PROMPT, HIDDEN)
    assert 0 < result.unknown < 1
    assert result.is_harmful is None


def test_a_prompt_that_is_harmful_is_so_however_it_is_cut(guarded: GuardedGenerator) -> None:
    assert guarded.generate(HIDDEN, max_tokens=3, threshold=0.0).finish == "harmful"


class _Texts:
    """Says of the tokens of a response what it was told, and nothing more."""

    def __init__(self, *texts: str) -> None:
        self._texts = iter(texts)

    def decode(self, token: int) -> str:
        return next(self._texts, " bread")


def _generate_saying(guarded: GuardedGenerator, texts: list[str], **options: Any) -> Generation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(guarded.engine), "pieces", lambda _: _Texts(*texts))
        options = {"max_tokens": 8, "sampling": Sampling(temperature=0), "threshold": 1.0} | options
        return guarded.generate("a", **options)


@pytest.mark.parametrize("every", [1, 2, 5, 8])
def test_a_response_ends_at_its_first_token_that_cannot_be_read(
    guarded: GuardedGenerator, every: int
) -> None:
    """Readable text behind it in the same reading does not make up for it."""
    cut = "w\u200bo\u200br\u200bd\u200bs\u200ba\u200bn\u200bd"
    texts = ["Take", f" {cut}", " of flour and of water, as much as there is", " and bake them"]
    generation = _generate_saying(guarded, texts, every=every)
    given = list[str]()
    with pytest.raises(BackendError, match="the response has no verdict: invisible characters cut"):
        given.extend(piece.text for piece in generation)
    assert given == (["Take"] if every == 1 else [])
    assert (generation.finish, generation.decided_at) == (None, None)
    assert generation.result.tokens == generation.prompt_tokens + 2
    assert generation.result.unknown > 0.5


@pytest.mark.parametrize("every", [1, 2, 5, 8])
@pytest.mark.parametrize("behind", [-1, 0, 1])
def test_a_token_that_decides_does_not_hide_one_before_it_that_cannot_be_read(
    guarded: GuardedGenerator, every: int, behind: int
) -> None:
    scores = [piece.score for piece in _generate_saying(guarded, [])]
    deciding = max(range(1, len(scores)), key=lambda n: scores[n])
    texts = ["no"] * (len(scores) + 1)
    texts[deciding + behind] = "w\u200bo\u200br\u200bd\u200bs" * 20
    generation = _generate_saying(guarded, texts, every=every, threshold=scores[deciding])
    if behind < 0:
        with pytest.raises(BackendError, match="the response has no verdict"):
            list(generation)
        return
    assert [piece.text for piece in generation] == texts[:deciding]
    assert (generation.finish, generation.decided_at) == ("harmful", deciding + 1)
    assert (generation.result.unknown > 0.5) == (behind == 0)


def test_what_tokens_say_is_looked_at_once(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One invisible character, as in an emoji, had all of the text read again with each token."""
    read, add = list[str](), CutWords.add

    def reading(words: CutWords, text: str) -> None:
        read.append(text)
        add(words, text)

    monkeypatch.setattr(CutWords, "add", reading)
    texts = ["I ", "\u2764\ufe0f", " br", "ead"]
    pieces = [piece.text for piece in _generate_saying(guarded, texts)]
    assert pieces[: len(texts)] == texts
    assert read == ["a", *pieces]


def test_a_response_that_is_no_text_is_refused(guarded: GuardedGenerator) -> None:
    with pytest.raises(InputError, match="the response must be a str, found NoneType"):
        guarded.read(PROMPT, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("by_rules", [False, True])
def test_the_result_is_of_the_token_that_decided_however_often_the_head_runs(
    guarded: GuardedGenerator, by_rules: bool
) -> None:
    def run(every: int, threshold: float, **options: Any) -> Any:
        settings = {"max_tokens": 20, "sampling": Sampling(temperature=0), "threshold": threshold}
        with guarded.generate(PROMPT, every=every, **settings, **options) as generation:
            pieces = [piece.score for piece in generation]
        return generation, pieces

    first, scores = run(1, 1.0)
    peak = max(range(len(scores)), key=lambda n: (scores[n] > first.prompt.score, scores[n], -n))
    # A second rule, which decides no sooner, must not be told where it came behind the first.
    at = scores[peak]
    rules = {"rules": [Patience(1, 1, at), Patience(2, 2, 0.0)]} if by_rules else {}
    expected, _ = run(1, 1.0 if by_rules else at, **rules)
    for every in (3, 7, 20):
        found, _ = run(every, 1.0 if by_rules else at, **rules)
        assert found.finish == "harmful"
        assert found.decided_at == expected.decided_at
        assert found.result.score == pytest.approx(expected.result.score, abs=1e-6)
        assert found.result.tokens == expected.result.tokens
        if not by_rules:
            assert found.result.is_harmful
            assert found.decided_at == peak + 1


def test_the_command_names_the_token_that_decided(grafted: Path, guarded: GuardedGenerator) -> None:
    greedy = Sampling(temperature=0)
    generation = guarded.generate(PROMPT, max_tokens=8, sampling=greedy, threshold=1.0)
    scores = [piece.score for piece in generation]
    peak = max(range(8), key=lambda n: scores[n])
    if scores[peak] <= generation.prompt.score:
        pytest.skip("the prompt has the highest score")
    options = ["--temperature", 0, "--max-tokens", 8, "--every", 8, "--threshold", scores[peak]]
    done = siren("generate", grafted, PROMPT, *options)
    assert done.exit_code == 3
    assert f"harmful: score {scores[peak]:.4f} at token {peak + 1}," in done.stderr


def test_a_system_message_needs_the_chat_template(grafted: Path) -> None:
    done = siren("generate", grafted, PROMPT, "--no-chat", "--system", "Be kind.")
    assert done.exit_code == 2
    assert "--system goes with the chat template" in " ".join(done.stderr.split())


def _labels(head: dict[str, Any]) -> None:
    head |= {"activation": "sigmoid", "labels": ["hate", "hate"]}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_labels, "labels is ['hate', 'hate']"),
        (lambda head: head.update(activation="sigmoid"), "labels is []"),
        (lambda head: head.update(activation="logistic"), "a logistic head has 1 logit"),
        (lambda head: head.update(layers=[99]), "layers must ascend and end below"),
        (lambda head: head.update(layers=[]), "layers must ascend and end below"),
        (lambda head: head.update(features=99_999), "features read from"),
    ],
)
def test_a_head_that_contradicts_itself_is_refused(
    copied: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    manifest = json.loads((copied / "guard.json").read_bytes())
    damage(manifest["heads"]["harm"])
    (copied / "guard.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=re.escape(message)):
        GuardedGenerator.load(copied)
