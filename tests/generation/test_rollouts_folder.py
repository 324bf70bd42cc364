"""siren rollouts, on a generator's folder that is run in the same process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelled import write_jsonl
from siren_command import siren
from siren_runtime import Guard, GuardedGenerator, InputError, Sampling
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_train.rollouts.folder import FolderGenerator
from siren_train.rollouts.generator import Api
from siren_train.rollouts.generator import Sampling as Asked

PROMPT, PREFIX, TOKENS = "The history of bread begins", "with flour", 6
USER = {"role": "user", "content": PROMPT}
ASSISTANT = {"role": "assistant", "content": PREFIX}


def _open(
    folder: Path, api: Api = "chat", temperature: float = 0.0, max_tokens: int = TOKENS
) -> FolderGenerator:
    return FolderGenerator(folder, Asked("tiny", api, max_tokens, temperature), threads=1)


def _greedily(guarded: GuardedGenerator, prompt: Any, **options: Any) -> str:
    """What the guarded generator says where nothing is harmful to it."""
    options = {"max_tokens": TOKENS, "sampling": Sampling(temperature=0), **options}
    return "".join(piece.text for piece in guarded.generate(prompt, threshold=1.0, **options))


@pytest.fixture(scope="module")
def plain(generator: Callable[..., Path]) -> Path:
    return generator("llama")


@pytest.mark.parametrize("is_grafted", [False, True])
def test_it_goes_on_in_the_chat_template_from_each_prefix(
    is_grafted: bool, plain: Path, grafted: Path, guarded: GuardedGenerator
) -> None:
    opened = _open(grafted if is_grafted else plain)
    said = [opened.go_on(PROMPT, prefix, 0) for prefix in ("", PREFIX)]
    assert said == [
        _greedily(guarded, [USER]),
        _greedily(guarded, [USER, ASSISTANT], continue_last=True),
    ]
    assert said[0] != said[1]


def test_it_goes_on_with_plain_text_by_completions(plain: Path, guarded: GuardedGenerator) -> None:
    opened = _open(plain, "completions")
    text = f"{PROMPT}\n{PREFIX}"
    expected = _greedily(guarded, text, chat=False)
    assert opened.go_on(PROMPT, PREFIX, 0) == expected != _open(plain).go_on(PROMPT, PREFIX, 0)
    assert opened.go_on("", text, 0) == expected
    with pytest.raises(InputError, match="--api completions"):
        _open(plain).go_on("", PREFIX, 0)


def test_a_seed_gives_the_same_text_again_and_another_another(plain: Path) -> None:
    first, second = (
        [opened.go_on(PROMPT, PREFIX, seed) for seed in range(4)]
        for opened in (_open(plain, temperature=1.0), _open(plain, temperature=1.0))
    )
    assert first == second
    assert len(set(first)) == 4


def test_it_ends_where_the_model_ends_the_text(copied: Path, guarded: GuardedGenerator) -> None:
    options: dict[str, Any] = {"sampling": Sampling(temperature=0), "max_tokens": TOKENS}
    pieces = [*guarded.generate([USER], threshold=1.0, **options)]
    ending = next(n for n in range(2, TOKENS) if pieces[n].token not in
                  {piece.token for piece in pieces[:n]})  # fmt: skip
    path = copied / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["eos_token_id"] = pieces[ending].token
    path.write_text(json.dumps(config))
    said = _open(copied).go_on(PROMPT, "", 0)
    assert said == "".join(piece.text for piece in pieces[:ending])


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "match"),
    [
        (PROMPT, 10_000, "goes on with 1 to 0, beside 10,000 of --max-tokens"),
        ("no " * 500, TOKENS, "tokens; the model of .* goes on with 1 to"),
        ("a\0b", TOKENS, r"U\+0000"),
        ("\ud800", TOKENS, "the prompt holds a lone surrogate"),
    ],
)
def test_what_the_model_cannot_go_on_with_is_refused(
    prompt: str, max_tokens: int, match: str, plain: Path
) -> None:
    with pytest.raises(InputError, match=match):
        _open(plain, max_tokens=max_tokens).go_on(prompt, "", 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"prompt": prompt, "response": PREFIX, "label": label, "split": "train"}
        for prompt, label in ((PROMPT, 0), ("No", 1))
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", rows)


def _arguments(data: Path, output: Path, generator: object, judge: Path) -> list[object]:
    asked = ["--generator", generator, "--judge", judge, "--rollouts", 2, "--threads", 1]
    return ["rollouts", data, "-o", output, "--prefixes", 2, *asked, "--max-tokens", TOKENS]


def test_targets_are_the_judges_scores_of_what_the_folder_draws(
    data: Path, plain: Path, bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "targets.jsonl"
    arguments = [*_arguments(data, output, plain, bundle), "--seed", 3]
    result = siren(*arguments)
    assert result.exit_code == 0, result.output
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert {(row["rollouts"], row["source"]) for row in written} == {(2, plain.name)}
    judge = Guard.load(bundle, threads=1, **{**AS_LLM_SIREN, "long_text": "windows"})
    opened = _open(plain, temperature=1.0)
    for row in written:
        prompt, prefix = row["prompt"], row["prefix"]
        said = [prefix + opened.go_on(prompt, prefix, seed) for seed in (3, 4)]
        scores = [judge.score(prompt=prompt, response=text).score for text in said]
        assert row["target"] == pytest.approx(sum(scores) / 2, abs=1e-6)
    assert {(row["prompt"], row["prefix"]) for row in written} == {
        (prompt, prefix) for prompt in (PROMPT, "No") for prefix in ("", PREFIX)
    }


def test_prefixes_that_the_model_has_no_room_for_are_left_out(
    plain: Path, bundle: Path, tmp_path: Path
) -> None:
    prompts = "no " * 500, PROMPT, "a\0b"
    rows = [
        {"prompt": prompt, "response": PREFIX, "label": 0, "split": "train"} for prompt in prompts
    ]
    rows.append({"text": "answers no prompt", "label": 1, "split": "train"})
    data, output = write_jsonl(tmp_path / "data.jsonl", rows), tmp_path / "targets.jsonl"
    result = siren(*_arguments(data, output, plain, bundle))
    assert result.exit_code == 0, result.output
    assert "5 prefixes were left out, the first since 'no no" in result.stderr
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["prompt"], row["prefix"]) for row in written] == [(PROMPT, ""), (PROMPT, PREFIX)]


def test_a_run_goes_on_where_it_was_with_the_same_model_alone(
    data: Path, plain: Path, grafted: Path, bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "targets.jsonl"
    arguments = [*_arguments(data, output, plain, bundle), "--model", "tiny"]
    assert siren(*arguments).exit_code == 0
    targets = output.read_bytes()
    work = tmp_path / "targets.jsonl.work"
    continuations = (work / "continuations.jsonl").read_bytes().splitlines(keepends=True)
    for name in ("continuations.jsonl", "scores.jsonl"):
        kept = (work / name).read_bytes().splitlines(keepends=True)[:5]
        (work / name).write_bytes(b"".join(kept))
    result = siren(*arguments)
    assert result.exit_code == 0, result.output
    again = (work / "continuations.jsonl").read_bytes().splitlines(keepends=True)
    assert again[:5] == continuations[:5]
    assert sorted(again) == sorted(continuations)
    assert output.read_bytes() == targets
    result = siren(*_arguments(data, output, grafted, bundle), "--model", "tiny")
    assert result.exit_code == 1
    assert "engine was" in result.stderr


def test_a_generator_that_is_none_is_named(data: Path, bundle: Path, tmp_path: Path) -> None:
    output, missing = tmp_path / "targets.jsonl", tmp_path / "smollm2-gneai"
    result = siren(*_arguments(data, output, missing, bundle))
    assert result.exit_code == 2
    assert "no folder that is there" in " ".join(result.stderr.split())
    result = siren(*_arguments(data, output, "http:/localhost:8000/v1", bundle), "--model", "tiny")
    assert result.exit_code == 1
    assert "neither a URL such as http://localhost:8000/v1, nor a folder" in result.stderr
    result = siren(*_arguments(data, output, tmp_path, bundle))
    assert result.exit_code == 1
    assert f"{tmp_path}: not a model folder of onnxruntime-genai" in result.stderr
    assert not output.exists()
