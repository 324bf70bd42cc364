"""A new kind of head is its own file: authors and the export take whatever is a `Head`."""

from dataclasses import dataclass, replace

import numpy as np
import onnxruntime
import pytest

from models import make_artifact
from siren_export.export import export_bundle
from siren_export.graph.taps import Taps
from siren_export.heads.mlp import Dense
from siren_export.heads.mlp_artifact import write_mlp_artifact
from siren_export.heads.registry import load_artifact
from siren_export.heads.selected import LayerSelection
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.bundle.graphs import GRADIENTS, VALUE
from siren_runtime.bundle.heads import HARMFUL, HeadSpec
from siren_runtime.bundle.reader import load_bundle


@dataclass(frozen=True)
class LastToken:
    """A linear head over the last token's neurons, which leave nothing for the next token."""

    matrix: np.ndarray  # float32 [n_features, classes]
    taps = Taps("residual", {0: np.array([5, 2]), 2: np.array([1, 7, 3])})
    parameters = 10

    @property
    def spec(self):
        return HeadSpec(
            kind="last-token", pooling="residual_last", layers=[0, 2], features=5, classes=2
        )

    def pool(self, g, states, attention_mask):
        neurons = self._neurons(g, states)
        length = g.op("ReduceSum", attention_mask, g.const([1]), keepdims=1)
        last = g.op("Sub", length, g.const(1))
        return g.op("GatherND", neurons, last, batch_dims=1)

    def pool_prefixes(self, g, states, feature_sum, feature_count):
        neurons = self._neurons(g, states)
        return neurons, neurons

    def features(self, g, pooled):
        return pooled

    def classify(self, g, pooled):
        logits = g.op("MatMul", pooled, g.table("matrix", self.matrix))
        probabilities = g.op("Softmax", logits, axis=-1)
        return g.op("Gather", probabilities, g.const(HARMFUL), axis=1), logits

    layer_weights = np.ones(5, np.float32)

    def explain(self, g, features, direction):
        matrix = g.table("matrix", self.matrix)
        value = g.op("Mul", g.op("MatMul", features, matrix), direction)
        gradients = g.op("MatMul", direction, g.table("transposed", self.matrix.T.copy()))
        return {VALUE: g.op("ReduceSum", value, g.const([-1]), keepdims=0), GRADIENTS: gradients}

    def _neurons(self, g, states):
        chosen = [
            g.op("Gather", states[block], g.table(f"channels.{block}", channels), axis=2)
            for block, channels in self.taps.channels.items()
        ]
        return g.op("Concat", *chosen, axis=2)


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_a_head_that_reads_the_last_token_exports_whole_and_growing(
    tmp_path, backbone_folder, name
):
    backbone = backbone_folder(name)
    published = load_artifact(make_artifact(tmp_path / "head", backbone))
    head = LastToken(np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32))
    bundle = tmp_path / "bundle"
    manifest = export_bundle(replace(published, head=head), load_checkpoint(backbone), bundle)
    assert manifest.head == head.spec
    assert load_bundle(bundle).manifest == manifest

    ids = np.random.default_rng(1).integers(5, 60, size=(1, 12))
    session = onnxruntime.InferenceSession(bundle / "score.onnx")
    whole = []
    for length in range(1, 13):
        padded = np.pad(ids[:, :length], ((0, 0), (0, 3)))
        feed = {"input_ids": padded, "attention_mask": (np.arange(length + 3) < length)[None] * 1}
        whole.append(session.run(["score"], feed)[0][0])
    if name == "bert":
        return
    session = onnxruntime.InferenceSession(bundle / "stream.onnx")
    feed = {"input_ids": ids, "past_lengths": [0], "feature_count": [0]}
    feed["feature_sum"] = np.zeros((1, 5), np.float32)
    for value in session.get_inputs():
        if value.name.startswith("past."):
            _, heads, _, dim = value.shape
            feed[value.name] = np.zeros((1, heads, 1, dim), np.float32)
    wanted = {value.name for value in session.get_inputs()}
    scores = session.run(["score"], {k: v for k, v in feed.items() if k in wanted})[0][0]
    np.testing.assert_allclose(scores, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_what_is_written_is_read_back(tmp_path, half):
    random = np.random.default_rng(0)
    layers = [LayerSelection(2, np.array([3, 1]), 0.5), LayerSelection(4, np.array([0]), 2.0)]
    dense = [
        Dense(random.normal(size=(4, 3)).astype(np.float16), np.zeros(4, np.float32)),
        Dense(random.normal(size=(2, 4)).astype(np.float16), np.ones(2, np.float32)),
    ]
    write_mlp_artifact(
        tmp_path,
        model_id="org/backbone",
        pooling="mlp_mean",
        layers=layers,
        dense=dense,
        max_length=64,
        threshold=0.25,
        dropout_rates=[0.1],
        class_names=("safe", "harmful"),
        unweighted=frozenset({4}),
        half=half,
    )
    artifact = load_artifact(tmp_path)
    assert (artifact.model_id, artifact.max_length, artifact.threshold) == (
        "org/backbone",
        64,
        0.25,
    )
    assert artifact.head.spec == HeadSpec(
        kind="mlp",
        pooling="mlp_mean",
        layers=[2, 4],
        features=3,
        classes=2,
        labels=["safe", "harmful"],
    )
    assert [layer.weight for layer in artifact.head.layers] == [0.5, 1.0]
    for read, written in zip(artifact.head.dense, dense, strict=True):
        np.testing.assert_array_equal(read.weight, written.weight)
        np.testing.assert_array_equal(read.bias, written.bias)
