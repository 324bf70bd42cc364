"""The streaming graph as it is: chunk by chunk it gives what the whole-sequence graph gives."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from models import make_artifact
from siren_export.export import export_bundle
from siren_export.families.registry import parse_config
from siren_export.heads.registry import load_artifact
from siren_export.passes.table import TABLE, Bound, row_of
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.unavailable import ReferenceUnavailable
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.errors import BundleError

DECODERS = (
    "qwen3",
    "qwen2",
    "llama",
    "llama-llama3-rope",
    "llama-linear-rope",
    "llama-mlp-bias",
    "llama-attention-bias",
    "llama-head-dim",
    "llama-multi-head",
    "mistral",
    "mistral-window",
    "mistral-short-window",
    "qwen3-window",
    "gemma2",
    "gemma3",
    "gemma3-4",
    "gemma3-multimodal",
    "granite-biases-4",
    "smollm3-layers",
    "olmo2",
    "phi3-partial-window",
    "phi3-longrope",
)
BOUND = {"fp32": 1e-5, "fp16": 5e-3}
CHUNKS = (1, 3, 7, 1, 1, 2, 10, 5)


class Stream:
    """Feeds a bundle's streaming graph, with buffers of `capacity` tokens.

    Those of blocks with a window are rings that hold two tokens more than the least.
    """

    def __init__(self, bundle, batch=1, capacity=64):
        self.session = onnxruntime.InferenceSession(bundle / "stream.onnx")
        self.names = [output.name for output in self.session.get_outputs()]
        inputs = {value.name: value for value in self.session.get_inputs()}
        self.past = {}
        for name in inputs:
            if name.startswith("past."):
                _, heads, past, dim = inputs[name].shape
                dtype = np.float16 if "16" in inputs[name].type else np.float32
                held = capacity if past == "past" else int(past.removeprefix("window_")) + 1
                self.past[name] = np.full((batch, heads, held, dim), 9.0, dtype)
        features = inputs["feature_sum"].shape[1]
        self.sums = np.zeros((batch, features), np.float32)
        self.lengths = np.zeros(batch, np.int64)

    def feed(self, chunks):
        """Feed one list of ids a row; return the scores [batch, chunk]."""
        width = max(map(len, chunks))
        ids = np.zeros((len(chunks), width), np.int64)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk)] = chunk
        feed = {"input_ids": ids, "past_lengths": self.lengths, "feature_sum": self.sums}
        values = self.session.run(self.names, {**feed, "feature_count": self.lengths, **self.past})
        outputs = dict(zip(self.names, values, strict=True))
        for row, chunk in enumerate(chunks):
            start, count = self.lengths[row], len(chunk)
            for name, buffer in self.past.items():
                present = outputs[name.replace("past", "present")]
                for token in range(count):
                    buffer[row, :, (start + token) % buffer.shape[2]] = present[row, :, token]
            self.lengths[row] += count
            if count:
                self.sums[row] = outputs["feature_sums"][row, count - 1]
        return outputs["score"]


@pytest.fixture
def bundle(tmp_path, backbone_folder):
    """Return a function: backbone name, precision, options of make_artifact -> a bundle."""

    def run(name, precision="fp32", **options):
        backbone = backbone_folder(name)
        head = make_artifact(tmp_path / "head", backbone, **options)
        folder = tmp_path / "bundle"
        export_bundle(load_artifact(head), load_checkpoint(backbone), folder, precision=precision)
        return folder

    return run


def open_whole(bundle):
    """Return a function: ids -> the score of that sequence by the whole-sequence graph."""
    session = onnxruntime.InferenceSession(bundle / "score.onnx")

    def whole(ids):
        feed = {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
        return session.run(["score"], feed)[0][0]

    return whole


@pytest.mark.parametrize(
    ("precision", "pooling"), [("fp32", "residual_mean"), ("fp16", "mlp_mean")]
)
@pytest.mark.parametrize("name", DECODERS)
def test_every_prefix_scores_as_in_the_whole_sequence_graph(bundle, name, pooling, precision):
    folder = bundle(name, precision, pooling=pooling)
    ids = np.random.default_rng(0).integers(5, 380, sum(CHUNKS)).tolist()
    stream, whole, start = Stream(folder), open_whole(folder), 0
    for length in CHUNKS:
        scores = stream.feed([ids[start : start + length]])
        for offset in range(length):
            expected = whole(ids[: start + offset + 1])
            assert scores[0, offset] == pytest.approx(expected, abs=BOUND[precision])
        start += length


def test_rows_of_a_batch_hold_pasts_of_different_lengths(bundle):
    folder = bundle("qwen3")
    rng = np.random.default_rng(1)
    rows = [rng.integers(5, 380, 20).tolist() for _ in range(3)]
    stream, whole, fed = Stream(folder, batch=3), open_whole(folder), [0, 0, 0]
    for lengths in ((5, 1, 0), (1, 4, 2), (0, 1, 1), (3, 0, 6)):
        chunks = [row[s : s + n] for row, s, n in zip(rows, fed, lengths, strict=True)]
        scores = stream.feed(chunks)
        fed = [s + n for s, n in zip(fed, lengths, strict=True)]
        for row, length in enumerate(lengths):
            if length:
                expected = whole(rows[row][: fed[row]])
                assert scores[row, length - 1] == pytest.approx(expected, abs=1e-5)


def test_what_lies_beyond_the_past_that_counts_changes_nothing(bundle):
    folder = bundle("llama")
    ids = list(range(20, 40))
    short, long = Stream(folder, capacity=32), Stream(folder, capacity=96)
    for part in (ids[:12], ids[12:]):
        np.testing.assert_allclose(short.feed([part]), long.feed([part]), rtol=0, atol=1e-6)


def test_a_stream_reaches_the_backbones_context_beyond_the_heads_limit(
    bundle, tmp_path, backbone_folder
):
    """Against an export of the same head whose limit is the context."""
    folder = bundle("llama-llama3-rope")
    manifest = json.loads((folder / "guard.json").read_text())
    assert manifest["backbone"]["context_length"] == 128
    head = replace(load_artifact(tmp_path / "head"), max_length=128)
    unlimited = tmp_path / "unlimited"
    export_bundle(head, load_checkpoint(backbone_folder("llama-llama3-rope")), unlimited)

    ids = np.random.default_rng(2).integers(5, 380, 128).tolist()
    stream, whole = Stream(folder, capacity=128), open_whole(unlimited)
    for start in range(0, 128, 32):
        scores = stream.feed([ids[start : start + 32]])
        expected = whole(ids[: start + 32])
        assert scores[0, -1] == pytest.approx(expected, abs=1e-5)


def test_a_stream_reaches_beyond_a_sliding_window(backbone_folder):
    checkpoint = load_checkpoint(backbone_folder("mistral-window"))
    backbone = parse_config(checkpoint.config, "config.json")
    assert backbone.context_length == 128
    assert set(backbone.windows.values()) == {48}


@pytest.mark.parametrize("name", ["qwen3", "llama-mlp-bias"])
def test_the_graphs_share_every_weight_but_the_rotary_tables(bundle, name):
    folder = bundle(name)

    def places(file):
        model = onnx.load(folder / file, load_external_data=False)
        onnx.checker.check_model(str(folder / file), full_check=True)
        return {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in model.graph.initializer
            if tensor.external_data
        }

    score, stream, head = places("score.onnx"), places("stream.onnx"), places("head.onnx")
    shared = score.keys() & stream.keys()
    assert score.keys() - shared == {"rotary/cos", "rotary/sin", "head/layer_weights"}
    assert stream.keys() - shared == {"rotary_context/cos", "rotary_context/sin"}
    assert all(score[key] == stream[key] for key in shared)
    assert head.items() <= score.items()


def test_no_stream_leaves_the_streaming_graphs_out(tmp_path, backbone_folder):
    backbone = backbone_folder("qwen3")
    head = load_artifact(make_artifact(tmp_path / "head", backbone))
    manifest = export_bundle(head, load_checkpoint(backbone), tmp_path / "bundle", stream=False)
    assert manifest.graphs.keys() == {"score", "explain.harm"}
    assert manifest.backbone.context_length is None


def test_an_encoder_has_no_streaming_graph(tmp_path, backbone_folder):
    backbone = backbone_folder("bert")
    head = load_artifact(make_artifact(tmp_path / "head", backbone))
    manifest = export_bundle(head, load_checkpoint(backbone), tmp_path / "bundle")
    assert manifest.graphs.keys() == {"score", "spans", "explain.harm"}


def unavailable(_advance):
    raise ReferenceUnavailable("not needed here")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_an_export_verifies_the_streaming_graph_in_chunks(tmp_path, backbone_folder, precision):
    backbone = backbone_folder("qwen3")
    head = load_artifact(make_artifact(tmp_path / "head", backbone, max_length=128))
    checkpoint, bundle = load_checkpoint(backbone), tmp_path / "bundle"
    made = export_bundle(head, checkpoint, bundle, precision=precision, reference=unavailable)
    report = made.verification
    assert report.stream_texts == 5
    bound = row_of("onnxruntime", precision).bound
    assert (report.stream_bound, report.stream_bounded) == (bound.value, bound.of)
    assert 0 <= report.stream_mean_difference <= report.stream_max_difference
    assert report.stream_difference <= bound.value
    assert load_bundle(bundle).manifest.verification == report


def test_streams_that_drift_fail_the_export_unless_it_is_allowed(
    tmp_path, backbone_folder, monkeypatch
):
    unkept = replace(row_of("onnxruntime", "fp16"), bound=Bound(-1.0, "max"))
    monkeypatch.setitem(TABLE, ("onnxruntime", "fp16"), unkept)
    backbone = backbone_folder("qwen3")
    head = load_artifact(make_artifact(tmp_path / "head", backbone))
    inputs = head, load_checkpoint(backbone), tmp_path / "bundle"
    with pytest.raises(BundleError, match=r"stream\.onnx, fed in chunks.*--allow-drift"):
        export_bundle(*inputs, precision="fp16", reference=unavailable)
    assert not (tmp_path / "bundle").exists()
    kept = export_bundle(*inputs, precision="fp16", reference=unavailable, allow_drift=True)
    assert kept.verification.stream_drifted
