"""siren serve --generate --every: a verdict every so many tokens, and no text before its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import openai
import pytest

from served import running
from siren_command import siren
from siren_runtime import GuardedGenerator, Sampling
from siren_runtime.generation.engine import Run
from siren_runtime.generation.generation import Generation, Piece
from siren_runtime.generation.watch import Watch
from siren_serve.settings import GenerateSettings, Settings

PROMPT = "The history of bread begins"
TOKENS = 12


@contextmanager
def _asking(folder: Path, every: int, threshold: float) -> Iterator[Callable[[], list[Any]]]:
    """Serve; what the block gets asks once, and returns the chunks of the answer."""
    settings = GenerateSettings(folder=str(folder), name="tiny", threshold=threshold, every=every)
    with running({}, generate=settings) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        chunks = partial(
            client.chat.completions.create,
            model="tiny",
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=TOKENS,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        yield lambda: list(chunks())


def _pieces(guarded: GuardedGenerator) -> list[Piece]:
    sampling = Sampling(temperature=0)
    return list(guarded.generate(PROMPT, max_tokens=TOKENS, sampling=sampling, threshold=1.0))


def _happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens from now on: a token is chosen, a verdict found, a piece given out."""
    events = list[str]()
    steps, read, give = Run.steps, Watch.read, Generation.__next__

    def chosen(run: Run) -> list[int]:
        events.append("token")
        return steps(run)

    def judged(watch: Watch) -> list[float]:
        scores = read(watch)
        events.append("verdict")
        return scores

    def given(generation: Generation) -> Piece:
        piece = give(generation)
        events.append("piece")
        return piece

    monkeypatch.setattr(Run, "steps", chosen)
    monkeypatch.setattr(Watch, "read", judged)
    monkeypatch.setattr(Generation, "__next__", given)
    return events


@pytest.mark.parametrize("every", [1, 4, 5])
def test_verdicts_come_every_so_many_tokens_and_no_piece_before_its_own(
    grafted: Path, guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    pieces = _pieces(guarded)
    with _asking(grafted, every, 1.0) as ask:
        events = _happened(monkeypatch)
        _, *chunks, _, _ = ask()
    choices = [chunk.choices[0] for chunk in chunks]
    assert [choice.delta.content for choice in choices] == [piece.text for piece in pieces]
    scores = [choice.siren["score"] for choice in choices]
    assert scores == pytest.approx([piece.score for piece in pieces], abs=1e-6)
    of_prompt, *events = events
    assert of_prompt == "verdict"
    judged, given = [0], 0
    for number, event in enumerate(events):
        if event == "verdict":  # on all tokens but the one that was just chosen
            judged.append(events[:number].count("token") - 1)
        given += event == "piece"
        assert given <= judged[-1]
    assert given == len(pieces)
    assert judged == [*range(0, len(pieces), every), len(pieces)]


def test_an_answer_is_cut_before_the_piece_that_decides_however_seldom_it_is_judged(
    grafted: Path, guarded: GuardedGenerator
) -> None:
    pieces = _pieces(guarded)
    prompt = guarded.generate(PROMPT, max_tokens=1, threshold=1.0).prompt.score
    scores = [piece.score for piece in pieces]
    highest = list(accumulate([prompt, *scores], max))  # before each token
    rises = [score - before for score, before in zip(scores, highest[:-1], strict=True)]
    deciding = max(range(len(rises)), key=rises.__getitem__)
    assert rises[deciding] > 1e-4
    threshold = scores[deciding] - rises[deciding] / 2
    computed = []
    for every in (1, 4, 5):
        with _asking(grafted, every, threshold) as ask:
            _, *chunks, last, usage = ask()
        texts = [chunk.choices[0].delta.content for chunk in chunks]
        assert texts == [piece.text for piece in pieces[:deciding]]
        assert last.choices[0].finish_reason == "content_filter"
        computed.append(usage.usage.completion_tokens)
        assert 0 <= computed[-1] - computed[0] < every


def test_the_command_hands_the_option_on(grafted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = list[Settings]()
    monkeypatch.setattr("siren_serve.server.serve", lambda settings, **_: served.append(settings))
    for options in ([], ["--every", 4]):
        assert siren("serve", "--generate", grafted, *options).exit_code == 0
    assert [each.generate.every for each in served if each.generate] == [1, 4]
