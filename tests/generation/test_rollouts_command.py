"""siren rollouts, on a grafted generator that siren serve holds."""

import json
from pathlib import Path

import pytest

from labelled import write_jsonl
from served import running
from siren_command import siren
from siren_runtime import Guard, GuardedGenerator, Sampling
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_serve.settings import GenerateSettings

PROMPTS = ("The history of bread begins", "No", "How can I sleep better?")
RESPONSE, TOKENS = "with flour", 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = [
        {"prompt": prompt, "response": RESPONSE, "label": label, "split": "train"}
        for prompt, label in zip(PROMPTS, (0, 1, 0), strict=True)
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", fields)


def _blocking(guarded: GuardedGenerator) -> float:
    """A threshold from which one of the prompts is harmful, and another is not."""
    scores = [guarded.generate(prompt, max_tokens=1, threshold=1.0).prompt.score
              for prompt in PROMPTS]  # fmt: skip
    return (max(scores) + min(scores)) / 2


def _arguments(data: Path, output: Path, url: str, judge: Path) -> list[object]:
    asked = ["--generator", f"{url}/v1", "--model", "tiny", "--judge", judge]
    sampled = ["--rollouts", 1, "--temperature", 0, "--max-tokens", TOKENS, "--threads", 1]
    return ["rollouts", data, "-o", output, "--prefixes", 2, *asked, *sampled]


def test_targets_are_of_what_the_generator_says_to_prompts_that_it_would_block(
    data: Path, grafted: Path, guarded: GuardedGenerator, bundle: Path, tmp_path: Path
) -> None:
    blocking = _blocking(guarded)
    stopped = [guarded.generate(p, max_tokens=1, threshold=blocking).finish for p in PROMPTS]
    assert {*stopped} > {"harmful"}
    output = tmp_path / "targets.jsonl"
    settings = GenerateSettings(folder=str(grafted), name="tiny", threshold=1.0)
    with running({}, generate=settings) as server:
        result = siren(*_arguments(data, output, server.url, bundle))
    assert result.exit_code == 0, result.output
    found = {
        (row["prompt"], row["prefix"]): row["target"]
        for row in map(json.loads, output.read_text().splitlines())
    }
    assert {*found} == {(prompt, prefix) for prompt in PROMPTS for prefix in ("", RESPONSE)}
    judge = Guard.load(bundle, threads=1, **{**AS_LLM_SIREN, "long_text": "windows"})
    for (prompt, prefix), target in found.items():
        messages = [{"role": "user", "content": prompt}]
        messages += [{"role": "assistant", "content": prefix}] if prefix else []
        generation = guarded.generate(
            messages,
            continue_last=bool(prefix),
            max_tokens=TOKENS,
            sampling=Sampling(temperature=0),
            threshold=1.0,
        )
        said = prefix + "".join(piece.text for piece in generation)
        expected = judge.score(prompt=prompt, response=said).score
        assert target == pytest.approx(expected, abs=1e-6)


def test_a_generator_that_blocks_one_of_the_prompts_makes_no_targets(
    data: Path, grafted: Path, guarded: GuardedGenerator, bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "targets.jsonl"
    settings = GenerateSettings(folder=str(grafted), name="tiny", threshold=_blocking(guarded))
    with running({}, generate=settings) as server:
        result = siren(*_arguments(data, output, server.url, bundle))
    assert result.exit_code == 1
    assert "blocked as harmful" in result.stderr
    assert not output.exists()
