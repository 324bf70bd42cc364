"""How large the inputs of linear layers get on example texts, which fixed scales must cover."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from siren_runtime.commands.texts import read_texts
from siren_runtime.errors import InputError
from siren_runtime.text import clean
from siren_runtime.tokenizer import Tokenizer

from .passes.rewrite import linear_nodes

Ranges = Mapping[str, np.ndarray]  # MatMul's name -> largest |input| of each channel, float32 [in]
_PREFIX = "largest:"


def read_calibration(path: Path) -> list[str]:
    """Read example texts: JSON lines with text, or prompt and response; or one text a line.

    Raises:
        InputError: the file cannot be read, a line is no such object, or there is no text.
    """
    texts = []
    try:
        with path.open("rb") as file:
            for line in (line for group in read_texts(file, "auto") for line in group):
                if line.text is None:
                    raise InputError(f"{path}, line {line.number}: {line.error}")
                texts.append(line.text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not texts:
        raise InputError(f"{path}: holds no text; calibration takes one text a line")
    return texts


def measure_ranges(graph: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> Ranges:
    """Run the written graph on `texts`, one by one, on the CPU.

    Args:
        graph: score.onnx with its weights beside it; a probed copy is written there too.
        texts: as the guard will see them: from its domain, of its lengths.
    """
    import onnxruntime

    model = ir.load(graph)
    names = [_probe(model.graph, node) for node in linear_nodes(model.graph)]
    probed = graph.with_name("probed.onnx")
    ir.save(model, probed)
    session = onnxruntime.InferenceSession(str(probed), providers=["CPUExecutionProvider"])
    ranges: dict[str, np.ndarray] = {}
    for ids in tokenizer.encode_batch([clean(text) for text in texts]):
        tokens = np.array([ids], np.int64)
        feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        for name, found in zip(names, session.run(names, feed), strict=True):
            layer = name.removeprefix(_PREFIX)
            ranges[layer] = np.maximum(ranges.get(layer, np.float32(0)), found)
    return ranges


def _probe(graph: ir.Graph, node: ir.Node) -> str:
    """Give the graph an output: the largest |input| of a MatMul by channel; return its name."""
    name = f"{_PREFIX}{node.name}"
    cast = ir.node("Cast", [node.inputs[0]], {"to": int(ir.DataType.FLOAT)})
    size = ir.node("Abs", cast.outputs)
    axes = ir.val(f"{name}.axes", const_value=ir.tensor([0, 1], name=f"{name}.axes"))
    graph.register_initializer(axes)
    output = ir.val(name, dtype=ir.DataType.FLOAT, shape=[None])
    largest = ir.node("ReduceMax", [size.outputs[0], axes], {"keepdims": 0}, outputs=[output])
    for new in (cast, size, largest):
        graph.append(new)
    graph.outputs.append(output)
    return name
