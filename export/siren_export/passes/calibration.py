"""What the inputs of linears are like on example texts, which quantization makes use of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import GuardGraph
from siren_export.sources.finite import all_finite
from siren_runtime.backends.onnxruntime.providers import import_onnxruntime
from siren_runtime.bundle.graphs import ATTENTION_MASK, INPUT_IDS
from siren_runtime.errors import InputError
from siren_runtime.text.lines import read_texts
from siren_runtime.text.rules import clean
from siren_runtime.text.tokenizer import Tokenizer

from .edit import Linear, before, linears

_GROUP, _STEP = 512, 32  # channels of a group at most, and what divides it if it can


@dataclass(frozen=True)
class Inputs:
    """The inputs x [in] of a linear, over all tokens of the texts.

    Attributes:
        largest: the largest |x| of each channel, float32 [in].
        moments: the sums of x x^T within groups of neighbouring channels, float32
            [in / group, group, group].
    """

    largest: np.ndarray
    moments: np.ndarray


Calibration = Mapping[str, Inputs]  # name of a linear's matrix -> its inputs


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


def measure_inputs(graph: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> Calibration:
    """Run the written graph on `texts`, one by one, on the CPU.

    It takes the memory of the graph in ONNX Runtime, and 2 KB at most for each input channel of
    every block, twice while a text runs: 0.8 GB for Qwen3-0.6B, 2.8 GB for Qwen3-4B. Moments over
    all inputs of a layer would be 36 GB for the latter, and so they are of groups.

    Args:
        graph: score.onnx with its weights beside it; a probed copy is written there too.
        texts: as the guard will see them: from its domain, of its lengths.

    Raises:
        InputError: an input is not finite on some text.
    """
    onnxruntime = import_onnxruntime()
    written = GuardGraph(ir.load(graph))
    groups: dict[ir.Value, list[Linear]] = {}  # of one input
    for linear in linears(written):
        groups.setdefault(linear.x, []).append(linear)
    names = [_probe(written, group[0]) for group in groups.values()]
    probed = graph.with_name("probed.onnx")
    ir.save(written.model, probed)
    session = onnxruntime.InferenceSession(str(probed), providers=["CPUExecutionProvider"])
    outputs = [name for pair in names for name in pair]
    totals: list[np.ndarray] = []
    for ids in tokenizer.encode_batch([clean(text) for text in texts]):
        tokens = np.array([ids], np.int64)
        feed = {INPUT_IDS: tokens, ATTENTION_MASK: np.ones_like(tokens)}
        found = session.run(outputs, feed)
        totals = totals or [np.zeros_like(new) for new in found]
        for merge, total, new in zip(cycle((np.maximum, np.add)), totals, found, strict=False):
            merge(total, new, out=total)
    for group, total in zip(groups.values(), totals[1::2], strict=True):
        if not all_finite(total):
            raise InputError(
                f"calibration: the input of {group[0].product.name} is not finite on some text; "
                "export in a higher precision"
            )
    return {
        linear.matrix_name: Inputs(*of_input)
        for *of_input, group in zip(totals[::2], totals[1::2], groups.values(), strict=True)
        for linear in group
    }


def _probe(written: GuardGraph, linear: Linear) -> tuple[str, str]:
    """Give the graph two outputs, the `Inputs` of a linear; return their names."""
    if linear.matrix.const_value is None:
        raise AssertionError(f"{linear.matrix_name} has no values")
    channels = linear.matrix.const_value.shape.numpy()[0]
    group = next((n for n in range(_GROUP, 0, -_STEP) if channels % n == 0), 1)
    r = before(written, linear.product, f"{linear.product.name}/calibration")
    x = r.op("Cast", linear.x, to=int(ir.DataType.FLOAT))
    largest = r.op("ReduceMax", r.op("Abs", x), r.const([0, 1]), keepdims=0)
    groups = r.op("Reshape", x, r.const([-1, channels // group, group]))
    columns, rows = (r.op("Transpose", groups, perm=p) for p in ([1, 2, 0], [1, 0, 2]))
    moments = r.op("MatMul", columns, rows)
    for output, rank in ((largest, 1), (moments, 3)):
        output.dtype, output.shape = ir.DataType.FLOAT, ir.Shape([None] * rank)
        written.model.graph.outputs.append(output)
    return str(largest.name), str(moments.name)
