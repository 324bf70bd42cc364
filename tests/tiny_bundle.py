"""A bundle small enough to build in milliseconds, with a real graph, and ways to change it.

The graph is a bag of tokens: embedding -> masked mean -> linear -> softmax.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper

from siren_runtime.bundle import graphs
from siren_runtime.bundle import manifest as m
from siren_runtime.bundle.heads import PRIMARY_HEAD, HeadSpec
from siren_runtime.bundle.report import Verification

WIDTH, CLASSES, MAX_LENGTH, OPSET = 6, 2, 32, 20
HARM = "z"  # to an alarm


def make_bundle(folder: Path, *, scale: float = 1.0, fill: float | None = None) -> Path:
    """Write a bundle with random weights; `fill` makes the linear layer all of that value."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(0)
    embedding = rng.normal(0, scale, (tokenizer.get_vocab_size(), WIDTH)).astype(np.float32)
    linear = rng.normal(0, scale, (WIDTH, CLASSES)).astype(np.float32)
    if fill is not None:
        linear[:] = fill
    save_model(make_model(embedding, linear), folder)
    seal(folder)
    return folder


def make_alarm(folder: Path, steepness: float) -> Path:
    """Write a bundle whose score is a sigmoid of the share of `HARM` among the tokens it reads."""
    make_bundle(folder)
    tokenizer = make_tokenizer()
    embedding = np.zeros((tokenizer.get_vocab_size(), WIDTH), np.float32)
    embedding[tokenizer.token_to_id(HARM), 0] = 1
    linear = np.zeros((WIDTH, CLASSES), np.float32)
    linear[0, 1] = steepness
    save_model(make_model(embedding, linear), folder)
    seal(folder)
    return folder


def make_tokenizer() -> tokenizers.Tokenizer:
    """Return a tokenizer of bytes with a start token, and with padding and truncation left on."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<start>", "<pad>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", 0)]
    )
    tokenizer.add_special_tokens(["<start>", "<pad>"])
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>", length=40)
    tokenizer.enable_truncation(7, direction="left")
    return tokenizer


def make_model(embedding: np.ndarray, linear: np.ndarray) -> onnx.ModelProto:
    """Return the score graph with its weights inside."""
    tokens, float32 = ["batch", "sequence"], TensorProto.FLOAT
    classes = linear.shape[1]
    constants = {
        "embedding": embedding,
        "linear": linear,
        "one": np.array(1, np.float32),
        "harmful": np.array(1, np.int64),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["hidden"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=float32),
        helper.make_node("Unsqueeze", ["mask", "axis_2"], ["mask_3d"]),
        helper.make_node("Mul", ["hidden", "mask_3d"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis_1"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "axis_1"], ["count"], keepdims=1),
        helper.make_node("Max", ["count", "one"], ["positive_count"]),
        helper.make_node("Div", ["sum", "positive_count"], ["features"]),
        helper.make_node("MatMul", ["features", "linear"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("Gather", ["probabilities", "harmful"], ["score"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "score",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, tokens)
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info("score", float32, ["batch"]),
            helper.make_tensor_value_info("logits", float32, ["batch", classes]),
            helper.make_tensor_value_info("features", float32, ["batch", embedding.shape[1]]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def save_model(model: onnx.ModelProto, folder: Path) -> None:
    """Write score.onnx and weights.bin, which holds the matrices."""
    (folder / "weights.bin").unlink(missing_ok=True)
    onnx.save_model(
        model,
        str(folder / "score.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=64,
    )


def edit_model(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Change score.onnx without touching the weights, and seal the bundle again."""
    path = folder / "score.onnx"
    model = onnx.load(str(path), load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())
    seal(folder)


def seal(folder: Path, *, vocab_size: int | None = None) -> None:
    """Write the guard.json that the files in the folder deserve."""
    head = HeadSpec("mlp", "residual_mean", [0, 1], WIDTH, CLASSES)
    contract = graphs.score_graph({PRIMARY_HEAD: head})
    spec = graphs.GraphSpec("score.onnx", OPSET, [*contract.inputs], [*contract.outputs])
    files = {}
    for name in ("score.onnx", "tokenizer.json", "weights.bin"):
        data = (folder / name).read_bytes()
        files[name] = m.FileSpec(len(data), hashlib.sha256(data).hexdigest())
    manifest = m.Manifest(
        format_version=m.FORMAT_VERSION,
        task="content",
        backbone=m.Backbone("example/bag-of-bytes", "0" * 40, "bag", 4, 2, vocab_size=vocab_size),
        heads={PRIMARY_HEAD: head},
        text=m.TextRules("llm-siren-0.2", "\n", MAX_LENGTH, "right"),
        threshold=0.5,
        precision="fp32",
        target="onnxruntime",
        graphs={"score": spec},
        files=files,
        verification=Verification("unverified", reason="made by a test"),
        versions={"siren-edge": "0.1.0"},
        created="2026-01-01T00:00:00Z",
    )
    (folder / "guard.json").write_bytes(m.encode(manifest))


def edit_manifest(folder: Path, edit: Callable[[Any], None]) -> None:
    """Change guard.json as plain JSON, whether or not it stays a manifest."""
    path = folder / "guard.json"
    manifest = msgspec.json.decode(path.read_bytes())
    edit(manifest)
    path.write_bytes(msgspec.json.encode(manifest))
