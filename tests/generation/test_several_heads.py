"""Several heads, and heads of labels, read the pass of a generator as they read a text."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from generators import need_genai
from models import LABELS, make_artifact, make_forecast, make_labels
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.graft.graft import graft
from siren_export.heads.base import Artifact
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import ArtifactError, BundleError, Guard, GuardedGenerator, Sampling
from siren_runtime.generation.folder import read_folder
from siren_runtime.generation.manifest import TrainedOn
from siren_serve.generation import told

need_genai()
PROMPT = "The history of bread begins"
Heads = dict[str, Path]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory, backbone: Callable[[str], Path]) -> Heads:
    folder = tmp_path_factory.mktemp("heads")
    return {
        "harm": make_artifact(
            folder / "harm", backbone("llama"), layers=[0, 2], channels=20, seed=1
        ),
        "kinds": make_labels(folder / "kinds", backbone("llama"), layers=[1, 2], channels=20),
        "ahead": make_forecast(folder / "ahead", backbone("llama"), hidden_dims=(5,)),
        "wide": make_artifact(folder / "wide", backbone("llama"), hidden_dims=(99,), layers=[2]),
    }


def _joined(heads: Heads, *names: str) -> Artifact:
    return together({name: load_artifact(heads[name]) for name in names})


@pytest.mark.parametrize(
    ("names", "narrow"),
    [
        (("harm", "kinds"), True),
        (("kinds", "harm"), True),
        (("kinds",), True),
        (("ahead", "harm"), True),
        (("harm", "wide"), False),
    ],
)
def test_every_head_gives_what_a_stream_of_the_same_tokens_gives(
    names: tuple[str, ...],
    narrow: bool,
    heads: Heads,
    generator: Callable[..., Path],
    backbone: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    artifact = _joined(heads, *names)
    manifest = graft(generator("llama"), artifact, tmp_path / "grafted", foreign=True)
    assert (manifest.width < manifest.neurons) == narrow
    export_bundle(artifact, load_checkpoint(str(backbone("llama"))), tmp_path / "bundle")
    guard = Guard.load(tmp_path / "bundle", backend="cpu", threads=1)
    guarded = GuardedGenerator.load(tmp_path / "grafted", threads=1)
    options = {"max_tokens": 8, "sampling": Sampling(temperature=0), "threshold": 1.0}
    generation = guarded.generate(PROMPT, **options)  # type: ignore[arg-type]
    tokens = guarded.prompt_tokens(PROMPT, True, 8)
    with guard.stream(threshold=1.0) as stream:
        expected = stream.feed_tokens(tokens)
        _assert_equal(generation.prompt.to_dict(), expected.to_dict())
        assert tuple(generation.prompt.heads) == names
        for piece in generation:
            expected = stream.feed_tokens([piece.token])
            assert piece.score == pytest.approx(expected.score, abs=1e-4)
        _assert_equal(generation.result.to_dict(), expected.to_dict())
    if "kinds" in names:
        assert tuple(generation.result.categories) == LABELS
    beside = told(generation.result)
    assert ("categories" in beside) == ("kinds" in names)
    assert [*beside.get("heads", {})] == ([*names] if len(names) > 1 else [])


def test_a_smoothed_forecast_is_that_of_a_stream_of_the_same_tokens(
    heads: Heads, generator: Callable[..., Path], backbone: Callable[[str], Path], tmp_path: Path
) -> None:
    artifact = _joined(heads, "ahead")
    graft(generator("llama"), artifact, tmp_path / "grafted", foreign=True)
    export_bundle(artifact, load_checkpoint(str(backbone("llama"))), tmp_path / "bundle")
    options = {"max_tokens": 8, "sampling": Sampling(temperature=0), "threshold": 1.0}
    found = {}
    for smoothing in (1, 6):
        for folder, where in (("grafted", ("decisions", "ahead")), ("bundle", ())):
            path = tmp_path / folder / "guard.json"
            manifest = decision = json.loads(path.read_text())
            for key in where:
                decision = decision[key]
            decision["smoothing"] = smoothing
            path.write_text(json.dumps(manifest))
        guard = Guard.load(tmp_path / "bundle", backend="cpu", threads=1)
        guarded = GuardedGenerator.load(tmp_path / "grafted", threads=1)
        generation = guarded.generate(PROMPT, **options)  # type: ignore[arg-type]
        with guard.stream(threshold=1.0) as stream:
            expected = stream.feed_tokens(guarded.prompt_tokens(PROMPT, True, 8))
            assert generation.prompt.score == pytest.approx(expected.score, abs=1e-4)
            scores = [piece.score for piece in generation]
            for piece, token in zip(scores, stream_tokens(guarded, options), strict=True):
                assert piece == pytest.approx(stream.feed_tokens([token]).score, abs=1e-4)
        found[smoothing] = scores
    assert max(abs(a - b) for a, b in zip(found[1], found[6], strict=True)) > 1e-3


def stream_tokens(guarded: GuardedGenerator, options: dict[str, object]) -> list[int]:
    """The tokens that the generator gives."""
    return [piece.token for piece in guarded.generate(PROMPT, **options)]  # type: ignore[arg-type]


def _assert_equal(found: dict[str, object], expected: dict[str, object]) -> None:
    for key in ("score", "risk"):
        assert found.get(key) == pytest.approx(expected.get(key), abs=1e-4)
    for key in ("is_harmful", "threshold", "flagged"):
        assert found.get(key) == expected.get(key)
    assert found.get("categories", {}) == pytest.approx(expected.get("categories", {}), abs=1e-4)
    of_found, of_expected = found.get("heads", {}), expected.get("heads", {})
    assert isinstance(of_found, dict)
    assert isinstance(of_expected, dict)
    assert [*of_found] == [*of_expected]
    for name, head in of_found.items():
        assert head["score"] == pytest.approx(of_expected[name]["score"], abs=1e-4)


def test_a_label_stops_from_its_own_threshold_on(
    heads: Heads, generator: Callable[..., Path], tmp_path: Path
) -> None:
    graft(generator("llama"), _joined(heads, "kinds"), tmp_path / "grafted", foreign=True)
    path = tmp_path / "grafted/guard.json"
    generator_ = GuardedGenerator.load(tmp_path / "grafted", threads=1)
    found = generator_.generate(PROMPT, max_tokens=2, threshold=1.0).prompt.categories
    quietest = min(found, key=found.__getitem__)
    manifest = json.loads(path.read_text())
    manifest["decisions"]["kinds"] |= {
        "threshold": 0.999,
        "labels": [
            {"name": label, "threshold": found[label] / 2 if label == quietest else 0.9999}
            for label in found
        ],
    }
    path.write_text(json.dumps(manifest))
    generation = GuardedGenerator.load(tmp_path / "grafted", threads=1).generate(
        PROMPT, max_tokens=2
    )
    assert generation.finish == "harmful"
    assert generation.prompt.flagged == (quietest,)
    del manifest["decisions"]["kinds"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="decisions"):
        GuardedGenerator.load(tmp_path / "grafted")


def test_the_command_takes_heads_by_name(
    heads: Heads, generator: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ["graft", generator("llama"), heads["harm"], f"labels={heads['kinds']}"]
    options = ["--foreign-head", "--no-verify", "-o", tmp_path / "out"]
    assert siren(*arguments, *options).exit_code == 0
    assert [*json.loads((tmp_path / "out/guard.json").read_text())["heads"]] == ["harm", "labels"]


def test_heads_of_chat_and_of_plain_text_are_not_read_off_one_pass(
    heads: Heads, generator: Callable[..., Path], tmp_path: Path
) -> None:
    folder = generator("llama")
    engine = read_folder(folder).digest()
    trained = {
        name: replace(load_artifact(heads[name]), trained_on=TrainedOn(engine=engine, text=text))
        for name, text in (("harm", "chat"), ("kinds", "plain"))
    }
    with pytest.raises(ArtifactError, match="some were trained on chat text"):
        graft(folder, together(trained), tmp_path / "out", verify=False)
    trained["kinds"] = replace(trained["kinds"], trained_on=trained["harm"].trained_on)
    manifest = graft(folder, together(trained), tmp_path / "out", verify=False)
    assert manifest.trained_on == trained["harm"].trained_on


def test_of_several_heads_that_of_another_engine_or_tokenizer_is_recorded(
    heads: Heads, generator: Callable[..., Path], tmp_path: Path
) -> None:
    source, other = read_folder(generator("llama")), "0" * 64
    own = TrainedOn(source.digest(), "chat", source.tokenizer_digest())

    def recorded(*trained_on: TrainedOn) -> TrainedOn | None:
        named = zip(("harm", "kinds"), trained_on, strict=True)
        artifact = together(
            {name: replace(load_artifact(heads[name]), trained_on=one) for name, one in named}
        )
        options = {"foreign": True, "verify": False, "overwrite": True}
        return graft(source.path, artifact, tmp_path / "out", **options).trained_on

    of_engine, of_tokenizer, untold = (
        TrainedOn(other, "chat", own.tokenizer),
        TrainedOn(own.engine, "chat", other),
        TrainedOn(own.engine, "chat"),
    )
    for pair, expected in (
        ((own, own), own),
        ((own, of_engine), of_engine),
        ((own, of_tokenizer), of_tokenizer),
        ((of_engine, of_tokenizer), TrainedOn(other, "chat", other)),
        ((own, untold), untold),
        ((untold, of_tokenizer), of_tokenizer),
    ):
        assert recorded(*pair) == recorded(*reversed(pair)) == expected
