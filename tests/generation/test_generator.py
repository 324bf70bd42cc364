"""A guarded generator gives the text that the model gives, and none without a verdict."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from generators import need_genai
from siren_command import rows, siren
from siren_runtime import (
    BackendError,
    BundleError,
    Generation,
    Guard,
    GuardedGenerator,
    InputError,
    Sampling,
    Schedule,
)
from siren_runtime.commands import generate as command
from siren_runtime.streaming.aggregation import AggregationName

need_genai()
PROMPT = "The history of bread begins"
GREEDY = Sampling(temperature=0)
TOKENS = 20


def _generate(guarded: GuardedGenerator, threshold: float = 1.0, **options: object) -> Generation:
    settings = {"max_tokens": TOKENS, "sampling": GREEDY, "threshold": threshold, **options}
    return guarded.generate(PROMPT, **settings)  # type: ignore[arg-type]


def _scores(guarded: GuardedGenerator) -> list[float]:
    return [piece.score for piece in _generate(guarded)]


def _peak(scores: Sequence[float], after: float) -> int:
    """A token whose score is the highest so far and no less than the prompt's."""
    return next(i for i, score in enumerate(scores) if score > max([after, *scores[:i]]))


def test_the_text_is_what_the_model_gives_without_a_guard(guarded: GuardedGenerator) -> None:
    tokens = guarded.prompt_tokens(PROMPT, True, TOKENS)
    run = guarded.engine.run(len(tokens) + TOKENS + 1, GREEDY.search())
    run.append(tokens)
    expected = []
    while len(expected) < TOKENS and (token := run.step()) not in guarded.engine.ends:
        expected.append(token)
    generation = _generate(guarded)
    pieces = list(generation)
    assert [piece.token for piece in pieces] == expected
    decoder = guarded.engine.pieces()
    assert "".join(piece.text for piece in pieces) == "".join(map(decoder.decode, expected))
    assert generation.finish == ("length" if len(expected) == TOKENS else "stop")
    assert generation.tokens == len(expected)


@pytest.mark.parametrize("aggregation", ["mean", "window", "ema"])
def test_scores_are_those_of_a_stream_of_the_same_tokens(
    guarded: GuardedGenerator, guard: Guard, aggregation: AggregationName
) -> None:
    generation = _generate(guarded, aggregation=aggregation, span=5)
    pieces = list(generation)
    tokens = guarded.prompt_tokens(PROMPT, True, TOKENS)
    with guard.stream(aggregation=aggregation, span=5) as stream:
        prompt = stream.feed_tokens(tokens)
        assert generation.prompt.score == pytest.approx(prompt.score, abs=1e-4)
        assert generation.prompt.tokens == prompt.tokens
        for piece in pieces:
            assert piece.score == pytest.approx(stream.feed_tokens([piece.token]).score, abs=1e-4)


@pytest.mark.parametrize("every", [1, 3, 7])
@pytest.mark.parametrize("holdback", [0, 2])
def test_it_stops_before_the_piece_that_decides_however_often_the_head_runs(
    guarded: GuardedGenerator, every: int, holdback: int
) -> None:
    prompt, scores = _generate(guarded).prompt.score, _scores(guarded)
    deciding = _peak(scores, prompt)
    whole = [piece.token for piece in _generate(guarded)]
    generation = _generate(guarded, scores[deciding], every=every, holdback=holdback)
    assert [p.token for p in generation] == whole[: max(deciding - holdback, 0)]
    assert generation.finish == "harmful"
    assert generation.stopped_by == f"threshold({scores[deciding]:g})"
    assert list(generation) == []


def test_rules_decide_in_place_of_the_threshold(guarded: GuardedGenerator) -> None:
    scores = _scores(guarded)
    lowest = min(scores)
    generation = _generate(guarded, 0.0, rules=[Schedule(((0, 1.0),))])
    assert len(list(generation)) == len(scores)
    soft = Schedule(((0, 1.0), (generation.prompt_tokens + 3, lowest)))
    generation = _generate(guarded, rules=[soft])
    assert len(list(generation)) == 3
    assert generation.result.decisions[0].token == generation.prompt_tokens + 3
    assert generation.stopped_by == str(soft)


def test_a_harmful_prompt_gets_no_token(guarded: GuardedGenerator) -> None:
    generation = _generate(guarded, 0.0)
    assert generation.finish == "harmful"
    assert generation.tokens == 0
    assert list(generation) == []


def test_messages_and_plain_text_are_read_as_they_stand(guarded: GuardedGenerator) -> None:
    chat = guarded.prompt_tokens([{"role": "user", "content": PROMPT}], True, TOKENS)
    assert chat == guarded.prompt_tokens(PROMPT, True, TOKENS)
    assert chat == guarded.engine.encode(f"<user> {PROMPT}\n<assistant> ")
    assert guarded.prompt_tokens(PROMPT, False, TOKENS) == guarded.engine.encode(PROMPT)


def test_a_message_that_was_begun_is_gone_on_with(guarded: GuardedGenerator) -> None:
    pieces = list(_generate(guarded))
    begun = "".join(piece.text for piece in pieces[:8])
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": begun}]
    tokens = guarded.prompt_tokens(messages, True, TOKENS, continue_last=True)
    assert tokens == guarded.engine.encode(f"<user> {PROMPT}\n<assistant> {begun}")
    options = {"max_tokens": TOKENS, "sampling": GREEDY, "threshold": 1.0}
    found = guarded.generate(messages, continue_last=True, **options)  # type: ignore[arg-type]
    assert found.prompt_tokens == len(tokens)
    assert len(list(found)) == TOKENS
    for refused in (messages[:1], messages[1:]):
        with pytest.raises(InputError, match="gone on with"):
            guarded.generate(refused, continue_last=True)
    with pytest.raises(InputError, match="without the chat template"):
        guarded.generate(PROMPT, chat=False, continue_last=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"every": 0}, "every"),
        ({"holdback": -1}, "holdback"),
        ({"threshold": 2.0}, "threshold"),
        ({"max_tokens": 5000}, "has room for 0 beside"),
        ({"rules": [1]}, "rules"),
        ({"sampling": {"temperature": 0}}, "sampling must be a Sampling, found dict"),
    ],
)
def test_arguments_out_of_range_are_refused(
    guarded: GuardedGenerator, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _generate(guarded, **options)  # type: ignore[arg-type]


def test_what_the_heads_said_of_a_part_outlives_the_next_run(guarded: GuardedGenerator) -> None:
    """A reader's memory is used again, and a long prompt is read in parts."""
    reader, rng = guarded.head.reader(), np.random.default_rng(0)
    reader.pooled(2)[:] = rng.normal(size=(2, guarded.head.width))
    first = reader.rows()
    before = first.copy()
    reader.pooled(2)[:] = rng.normal(size=(2, guarded.head.width))
    assert not np.array_equal(reader.rows(), before)
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, "temperature must be a number from 0, found -0.5"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "1"}, "temperature must be a number, found '1'"),
        ({"top_p": 1.5}, "top_p must be a number from 0 to 1"),
        ({"top_k": -1}, "top_k must be a whole number from 0"),
        ({"top_k": 2.5}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number above 0"),
        ({"seed": 2**31}, "seed must be a whole number from -2147483648"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**options)


@pytest.mark.parametrize("chat", [True, False])
def test_a_prompt_that_is_no_text_is_refused(guarded: GuardedGenerator, chat: bool) -> None:
    with pytest.raises(InputError, match=r"the prompt holds a lone surrogate U\+D800 at"):
        guarded.generate("a\ud800", chat=chat)
    with pytest.raises(InputError, match=r"messages\[1\] holds a lone surrogate"):
        guarded.generate([{"role": "user", "content": text} for text in ("a", "b\ud800")])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("Hello", "must be a list of prompts, found str"),
        ({"role": "user", "content": "Hello"}, "must be a list of prompts, found dict"),
        ([{"role": "user", "content": "Hello"}], "prompts holds messages"),
        (None, "found NoneType"),
        ([], "empty"),
    ],
)
def test_one_prompt_is_no_batch(guarded: GuardedGenerator, prompts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        guarded.generate_batch(prompts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device must be one of auto, cpu, found 'gpu'"),
        ({"folder": 5}, "folder must be a path, found int"),
    ],
)
def test_what_cannot_be_opened_is_refused(
    guarded: GuardedGenerator, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        GuardedGenerator.load(**{"folder": guarded.engine.folder, **options})


@pytest.mark.parametrize("prompt", [[], [{"role": "user"}], [{"role": "cat", "content": "x"}], {}])
def test_messages_that_are_none_are_refused(guarded: GuardedGenerator, prompt: object) -> None:
    with pytest.raises(InputError):
        guarded.generate(prompt)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers(guarded: GuardedGenerator) -> None:
    given = Sampling(
        np.float32(0.5),
        np.float64(0.75),
        np.int64(3),
        np.float16(1.5),
        np.uint8(7),  # type: ignore[arg-type]
    )
    expected = Sampling(0.5, 0.75, 3, 1.5, 7)
    assert given == expected
    assert {type(value) for value in given.search().values()} == {bool, int, float}
    texts = [[p.text for p in _generate(guarded, sampling=s)] for s in (given, expected)]
    assert texts[0] == texts[1]


_LARGE = "<" * 10_000_000
_TOO_LARGE = r"the {} has 10,\d+,\d+ characters, at most 1,048,576 are tokenized"


@pytest.mark.parametrize(
    ("prompt", "chat"),
    [
        (_LARGE, True),
        (_LARGE, False),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _LARGE}], True),
        ([{"role": "user", "content": "Hi", "tool_calls": [_LARGE]}], True),
    ],
)
def test_a_prompt_too_large_is_neither_rendered_nor_tokenized(
    guarded: GuardedGenerator, prompt: Any, chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("encode", "chat", "control"):
        monkeypatch.setattr(type(guarded.engine), work, None)
    with pytest.raises(InputError, match=_TOO_LARGE.format("prompt")):
        guarded.generate(prompt, chat=chat)


def test_a_prompt_that_its_template_makes_too_large_is_not_tokenized(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(guarded.engine), "chat", lambda *_: _LARGE)
    monkeypatch.setattr(type(guarded.engine), "encode", None)
    with pytest.raises(InputError, match=_TOO_LARGE.format("prompt")):
        guarded.generate(PROMPT)


@pytest.mark.parametrize("chat", [True, False])
def test_a_response_too_large_is_not_tokenized(
    guarded: GuardedGenerator, chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(guarded.engine), "encode", None)
    monkeypatch.setattr(type(guarded.engine), "control", None)
    with pytest.raises(InputError, match=_TOO_LARGE.format("response")):
        guarded.read(PROMPT, _LARGE, chat=chat)


def test_a_head_of_other_text_than_the_prompt_stands_in_is_refused(copied: Path) -> None:
    _rewrite(copied, trained_on={"engine": "0" * 64, "text": "chat"})
    with pytest.raises(InputError, match="trained on chat text"):
        GuardedGenerator.load(copied).generate(PROMPT, chat=False)


def test_a_closed_generation_gives_no_text(guarded: GuardedGenerator) -> None:
    with _generate(guarded) as generation:
        next(generation)
    with pytest.raises(BackendError, match="closed"):
        next(generation)


@pytest.mark.parametrize("every", [1, TOKENS])
def test_a_generation_that_is_closed_with_text_left_says_so(
    guarded: GuardedGenerator, every: int
) -> None:
    """Its end was found already, and pieces before it wait."""
    whole = list(_generate(guarded))
    generation = _generate(guarded, every=every, holdback=len(whole) - 1)
    assert next(generation) == whole[0]
    generation.close()
    with pytest.raises(BackendError, match="closed"):
        next(generation)
    read = _generate(guarded)
    list(read)
    read.close()
    assert list(read) == []


def test_each_kind_of_folder_names_what_opens_it(
    grafted: Path, generator: Callable[..., Path], bundle: Path
) -> None:
    with pytest.raises(BundleError, match=r"GuardedGenerator\.load"):
        Guard.load(grafted)
    with pytest.raises(BundleError, match=r"Guard\.load"):
        GuardedGenerator.load(bundle)
    with pytest.raises(BundleError, match="siren graft"):
        GuardedGenerator.load(generator("llama"))


def test_the_command_writes_the_text_and_a_json_line_a_token(
    grafted: Path, guarded: GuardedGenerator
) -> None:
    pieces = list(_generate(guarded))
    options = (PROMPT, "--max-tokens", TOKENS, "--threshold", 1, "--temperature", 0)
    result = siren("generate", grafted, *options, "--json")
    assert result.exit_code == 0, result.stderr
    *lines, last = rows(result)
    assert [line["token"] for line in lines] == [piece.token for piece in pieces]
    assert [line["score"] for line in lines] == [piece.score for piece in pieces]
    assert last["prompt"]["is_harmful"] is False
    drawn = (PROMPT, "--max-tokens", TOKENS, "--threshold", 1, "--temperature", 1.5, "--top-k", 1)
    result = siren("generate", grafted, *drawn, "--json")
    assert [row["token"] for row in rows(result)[:-1]] == [piece.token for piece in pieces]
    result = siren("generate", grafted, *drawn, "--repetition-penalty", 0)
    assert result.exit_code == 1
    assert "repetition_penalty must be a number above 0" in result.stderr
    result = siren("generate", grafted, *options, "--compare")
    assert re.search(rf"^siren: {len(pieces)} tokens, .* without it$", result.stderr, re.MULTILINE)
    result = siren("generate", grafted, PROMPT, "--max-tokens", TOKENS, "--threshold", 0, "--json")
    assert result.exit_code == 3
    assert [row["finish"] for row in rows(result)] == ["harmful"]


def test_a_model_is_timed_without_its_guard(guarded: GuardedGenerator) -> None:
    expected = len(list(_generate(guarded)))
    tokens, seconds = guarded.time_unguarded(PROMPT, True, TOKENS, GREEDY)
    assert tokens == expected
    assert seconds > 0
    with pytest.raises(InputError, match="has room for 0 beside"):
        guarded.time_unguarded(PROMPT, True, 5000, GREEDY)


def test_the_command_times_no_writing(
    grafted: Path, guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, now, write = len(list(_generate(guarded))), [0.0], command.write_json_line

    def a_second_later() -> float:
        now[0] += 1
        return now[0]

    def an_hour_later(fields: dict[str, object]) -> None:
        now[0] += 3600
        write(fields)

    monkeypatch.setattr(command, "time", SimpleNamespace(perf_counter=a_second_later))
    monkeypatch.setattr(command, "write_json_line", an_hour_later)
    options = ("--max-tokens", TOKENS, "--threshold", 1, "--temperature", 0, "--json")
    result = siren("generate", grafted, PROMPT, *options)
    assert result.exit_code == 0, result.output
    assert f"{count} tokens, {count / (count + 2):.1f} a second with the guard" in result.stderr


def test_the_command_grafts(generator: Callable[..., Path], head: Path, tmp_path: Path) -> None:
    result = siren("graft", generator("llama"), head, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "--foreign-head" in result.stderr
    result = siren("graft", generator("llama"), head, "-o", tmp_path / "out", "--foreign-head")
    assert result.exit_code == 0, result.stderr
    assert "siren: generating with and without: 3 of 3, in 0:" in result.stderr
    assert "generates as before" in result.stderr
    assert GuardedGenerator.load(tmp_path / "out").manifest.neurons == 51
    assert "a head was not trained on this engine's features" in result.stderr
    assert "for responses alone" not in result.stderr
    options = ("--foreign-head", "--no-verify", "--pool", "response")
    result = siren("graft", generator("llama"), head, "-o", tmp_path / "response", *options)
    assert result.exit_code == 0, result.stderr
    assert "its heads were not trained for responses alone; measure yours" in result.stderr


def _rewrite(folder: Path, **fields: object) -> None:
    path = folder / "guard.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
