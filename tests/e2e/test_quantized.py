"""The promise of the 8- and 4-bit engines: close to float32, and to themselves everywhere."""

import itertools
import json
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import backbones
from guards import load_guard
from models import make_artifact
from siren_bench.engines.process import in_fresh_process
from siren_bench.subjects.shapes import Shape
from siren_bench.subjects.subject import synthesize
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.reference import LlmSiren
from siren_runtime import Guard
from siren_runtime.bundle.manifest import decode
from siren_runtime.bundle.reader import Bundle, load_bundle
from siren_runtime.errors import BundleError
from siren_runtime.scoring.engines import Request, open_backend
from texts import LONG_TEXTS, TEXTS

POOLINGS = ("residual_mean", "mlp_mean")
FAMILIES = (*backbones.FAMILIES, "llama-mlp-bias", "bert-gelu-new")
QUANTIZED = ("int8", "int4")
# Mean |score difference| of tiny random models. They have 64 channels, so rounding averages out
# far less than in a real model, and a head as steep as make_artifact can make it.
MEAN_BOUND = {"int8": 0.05, "int4": 0.4}


def scores(guard: Guard, texts: list[str] = TEXTS) -> np.ndarray:
    return np.array([result.score for result in guard.score_batch(texts)])


@pytest.mark.parametrize(("name", "pooling"), zip(FAMILIES, itertools.cycle(POOLINGS)))
def test_quantized_bundles_stay_near_float32_and_int8_nearer_than_int4(export, name, pooling):
    expected = scores(load_guard(export(name, pooling=pooling).bundle, threads=1))
    differences = {}
    for precision in QUANTIZED:
        guard = load_guard(export(name, precision, pooling=pooling).bundle, threads=1)
        assert guard.manifest.precision == precision
        differences[precision] = np.abs(scores(guard) - expected).mean()
        assert 0 < differences[precision] <= MEAN_BOUND[precision]
    assert differences["int8"] < differences["int4"]


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_a_text_scores_the_same_alone_in_a_batch_and_at_any_thread_count(export, name, precision):
    """Activations are quantized per token, so neither neighbours nor padding change a score."""
    bundle = export(name, precision).bundle
    guard = load_guard(bundle, threads=1)
    alone = [guard.score(text).score for text in TEXTS]
    np.testing.assert_allclose(scores(guard), alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores(load_guard(bundle, threads=2)), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("name", ["llama-llama3-rope", "bert"])
def test_very_long_texts_are_scored(export, name, precision):
    assert np.isfinite(scores(load_guard(export(name, precision).bundle), LONG_TEXTS)).all()


@pytest.mark.parametrize("own_options", [False, True])
def test_int8_products_do_not_saturate_whatever_the_cpu(export, own_options):
    """The runtime's products equal those of widened weights, which no instruction saturates.

    A last bit of float32 may still round an activation the other way, hence the tolerance.
    """
    bundle = export("qwen3", "int8").bundle
    options = onnxruntime.SessionOptions() if own_options else None
    guard = load_guard(bundle, session_options=options)
    found = np.stack([result.features for result in guard.score_batch(TEXTS, features=True)])
    reference = _features_with_widened_products(bundle, guard)
    assert np.abs(found - reference).mean() <= 1e-3


def test_no_pair_of_int8_weights_can_saturate_sixteen_bits(export):
    """What AVX2 and AVX-512 without VNNI add in 16 bits, at the largest activation, 255."""
    import onnx

    model = onnx.load(str(export("qwen3", "int8").bundle / "score.onnx"))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type == "MatMulIntegerToFloat"]
    assert products
    for product in products:
        weights = onnx.numpy_helper.to_array(tensors[product.input[1]]).astype(int)
        assert np.abs(weights).max() > 64
        for signed in (weights, -weights):
            positive = np.maximum(signed, 0)
            assert 255 * (positive[::2] + positive[1::2]).max() <= 32767


def test_bundles_from_before_saturation_free_weights_run_with_wide_products(export, monkeypatch):
    """Their guard.json lacks the field, and so means false."""
    session = onnxruntime.InferenceSession
    bundle = export("qwen3", "int8").bundle
    manifest = json.loads((bundle / "guard.json").read_text())
    assert manifest.pop("saturation_free") is True
    older = decode(json.dumps(manifest).encode(), "guard.json")
    for found, wide in ((load_bundle(bundle), False), (Bundle(bundle, older), True)):
        opened = []

        def open_and_keep(*arguments, _opened=opened, **settings):
            _opened.append(session(*arguments, **settings))
            return _opened[-1]

        monkeypatch.setattr(onnxruntime, "InferenceSession", open_and_keep)
        open_backend(found, Request("cpu"))
        options = opened[-1].get_session_options()
        if wide:
            assert options.get_session_config_entry("session.x64quantprecision") == "1"
        else:
            with pytest.raises(RuntimeError, match="x64quantprecision"):
                options.get_session_config_entry("session.x64quantprecision")


def _features_with_widened_products(bundle, guard) -> np.ndarray:
    """The features with each 8-bit product replaced by one of float32 operands, exact here."""
    import onnx
    from onnx import helper

    model = onnx.load(str(bundle / "score.onnx"))
    nodes = []
    for node in model.graph.node:
        if node.op_type != "MatMulIntegerToFloat":
            nodes.append(node)
            continue
        x, weight, unit, scale, zero = node.input
        name = node.output[0]
        nodes += [
            helper.make_node("DequantizeLinear", [x, unit, zero], [f"{name}.x"]),
            helper.make_node("Cast", [weight], [f"{name}.w"], to=onnx.TensorProto.FLOAT),
            helper.make_node("MatMul", [f"{name}.x", f"{name}.w"], [f"{name}.y"]),
            helper.make_node("Mul", [f"{name}.y", scale], [name]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    rows = []
    for text in TEXTS:
        ids = np.array(guard.scorers[0].tokenizer.encode_batch([_cleaned(text)]), dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        rows.append(session.run(["features"], feed)[0][0])
    return np.stack(rows)


def _cleaned(text: str) -> str:
    from siren_runtime.text.rules import clean

    return clean(text)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_two_exports_are_byte_equal(tmp_path, export, backbone_folder, precision):
    exported = export("qwen3", precision)
    export_bundle(
        load_artifact(exported.artifact),
        load_checkpoint(backbone_folder("qwen3")),
        tmp_path / "again",
        precision=precision,
    )
    for name in ("score.onnx", "weights.bin", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exported.bundle / name).read_bytes()


def test_quantized_bundles_are_smaller(export):
    sizes = [
        (export("qwen3", precision).bundle / "weights.bin").stat().st_size
        for precision in ("fp32", "int8", "int4")
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_the_report_bounds_the_mean_and_drift_fails(tmp_path, backbone_folder):
    backbone = backbone_folder("qwen3")
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
    checkpoint = load_checkpoint(backbone)
    reference = LlmSiren(artifact, checkpoint).scores
    manifest = export_bundle(
        artifact, checkpoint, tmp_path / "int8", precision="int8", reference=reference
    )
    report = manifest.verification
    assert (report.status, report.bounded) == ("passed", "mean")
    assert report.mean_difference <= report.bound == 2e-2
    with pytest.raises(BundleError, match=r"beyond the int4 bound of 5e-02 for the mean"):
        export_bundle(
            artifact,
            checkpoint,
            tmp_path / "int4",
            precision="int4",
            reference=lambda advance: _shifted(reference(advance)),
        )
    assert not (tmp_path / "int4").exists()


def _shifted(reference):
    import msgspec

    moved = [score + 0.6 if score < 0.5 else score - 0.6 for score in reference.scores]
    return msgspec.structs.replace(reference, scores=moved)


_WIDE = Shape(
    "wide",
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "head_dim": 128,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
    },
    20,
    (32,),
)


def _peak_of_export(head: str, backbone: str, output: str, precision: str) -> int:
    """The most memory that an export held, but for pages of files, which can be taken back."""
    found, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            status = Path("/proc/self/status").read_text()
            found.append(int(status.partition("RssAnon:")[2].split()[0]) * 1024)
            done.wait(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        artifact, checkpoint = load_artifact(head), load_checkpoint(backbone)
        # Fitted to few texts, which takes less long; the matrices are the same.
        options = {} if precision == "fp32" else {"calibration": TEXTS[:8]}
        export_bundle(artifact, checkpoint, Path(output), precision=precision, **options)
    finally:
        done.set()
        watcher.join()
    return max(found)


def test_quantizing_streams(tmp_path):
    """Peak memory beyond that of float32 is a few matrices, not the model."""
    made = synthesize(_WIDE, tmp_path)
    head, backbone = str(made.head), str(made.backbone)
    largest = 4 * 32000 * 1024  # the embedding in float32
    peaks = {
        p: in_fresh_process(_peak_of_export, head, backbone, str(tmp_path / p), p)
        for p in ("fp32", *QUANTIZED)
    }
    model = json.loads((tmp_path / "fp32" / "guard.json").read_text())["files"]["weights.bin"]
    assert model["size"] > 4 * largest / 2
    for precision in QUANTIZED:
        assert peaks[precision] - peaks["fp32"] < largest
