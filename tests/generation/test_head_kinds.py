"""Every kind of head that reads text is grafted, and scores by its definition."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from generators import need_genai
from polynomials import make_polynomial, plain_orders
from siren_command import siren
from siren_export.graft.graft import graft
from siren_export.graph.builder import GraphBuilder
from siren_export.graph.taps import Taps
from siren_export.heads.registry import load_artifact
from siren_runtime import GuardedGenerator, InputError, Sampling
from siren_runtime.bundle.heads import HARMFUL, HeadSpec
from siren_runtime.errors import ArtifactError
from siren_runtime.generation.folder import read_folder
from siren_runtime.generation.manifest import NEURONS_OUTPUT, TrainedOn
from trajectories import make_trajectory_head

need_genai()
Make = Callable[..., Path]
PROMPT, TOKENS = "The history of bread begins", 8


@dataclass(frozen=True)
class LastToken:
    """A linear head over the last token's neurons, of a kind that no registry knows."""

    matrix: np.ndarray  # float32 [n_features, classes]
    taps = Taps("residual", {0: np.array([5, 2]), 3: np.array([1, 7, 3])})
    spec = HeadSpec(kind="last", pooling="residual_last", layers=[0, 3], features=5, classes=2)

    def features(self, g: GraphBuilder, pooled: ir.Value) -> ir.Value:
        return g.op("Identity", pooled)

    def classify(self, g: GraphBuilder, pooled: ir.Value) -> tuple[ir.Value, ir.Value]:
        logits = g.op("MatMul", pooled, g.table("matrix", self.matrix))
        probabilities = g.op("Softmax", logits, axis=-1)
        return g.op("Gather", probabilities, g.const(HARMFUL), axis=1), logits


def _scores(guarded: GuardedGenerator, every: int) -> tuple[list[float], np.ndarray]:
    """The scores of a prompt and of each token behind it, and the neurons of all, [tokens, n]."""
    generation = guarded.generate(
        PROMPT, max_tokens=TOKENS, sampling=Sampling(temperature=0), threshold=1.0, every=every
    )
    pieces = list(generation)
    assert len(pieces) > 2
    prompt = guarded.prompt_tokens(PROMPT, True, TOKENS)
    tokens = [*prompt, *(piece.token for piece in pieces)]
    run = guarded.engine.run(len(tokens) + 1, {})
    run.append(tokens)
    scores = [generation.prompt.score, *(piece.score for piece in pieces)]
    return scores, run.output(NEURONS_OUTPUT)[0].astype(np.float64)


@pytest.mark.parametrize("every", [1, 3])
def test_a_polynomial_scores_the_mean_of_all_tokens_so_far(
    every: int, generator: Make, backbone: Make, tmp_path: Path
) -> None:
    trained_on = TrainedOn(engine=read_folder(generator("llama")).digest(), text="chat")
    head = make_polynomial(tmp_path / "head", backbone("llama"), trained_on=trained_on)
    artifact = load_artifact(head)
    manifest = graft(generator("llama"), artifact, tmp_path / "out")
    assert manifest.trained_on == trained_on
    assert manifest.check is not None
    assert manifest.width == manifest.neurons
    guarded = GuardedGenerator.load(tmp_path / "out", threads=1)
    scores, neurons = _scores(guarded, every)
    for number, score in enumerate(reversed(scores)):
        features = neurons[: len(neurons) - number].mean(axis=0) * artifact.head.layer_weights
        logit = plain_orders(tmp_path / "head", features)[-1]
        assert score == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)


@pytest.mark.parametrize("every", [1, 3])
def test_a_head_of_the_last_token_scores_each_by_itself(
    every: int, generator: Make, head: Path, tmp_path: Path
) -> None:
    last = LastToken(np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32))
    artifact = replace(load_artifact(head), head=last)  # type: ignore[arg-type]
    graft(generator("llama"), artifact, tmp_path / "out", foreign=True)
    guarded = GuardedGenerator.load(tmp_path / "out", threads=1)
    scores, neurons = _scores(guarded, every)
    logits = neurons[-len(scores) :] @ last.matrix
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    assert scores == pytest.approx(expected.tolist(), abs=1e-4)
    with pytest.raises(InputError, match="the heads read the last token"):
        GuardedGenerator.load(tmp_path / "out", threads=1, spans=True)


def test_a_head_of_trajectories_is_refused(generator: Make, backbone: Make, tmp_path: Path) -> None:
    head = make_trajectory_head(tmp_path / "head", backbone("llama"))
    with pytest.raises(ArtifactError, match="scores trajectories of agents"):
        graft(generator("llama"), load_artifact(head), tmp_path / "out", foreign=True)
    result = siren("graft", generator("llama"), head, "-o", tmp_path / "out", "--foreign-head")
    assert result.exit_code == 1
    assert "graft a head of texts" in result.stderr
    assert not (tmp_path / "out").exists()
