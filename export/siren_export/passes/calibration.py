"""What the inputs of linears are like on example texts, which quantization makes use of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import GuardGraph
from siren_export.sources.finite import all_finite
from siren_runtime.backends.onnxruntime.providers import import_onnxruntime
from siren_runtime.bundle.files import ReadFailures
from siren_runtime.bundle.graphs import ATTENTION_MASK, INPUT_IDS
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError
from siren_runtime.text.lines import read_texts
from siren_runtime.text.rules import clean
from siren_runtime.text.tokenizer import Tokenizer

from .edit import Linear, after, before, by_input

_GROUP, _STEP = 512, 32  # channels of a group at most, and what divides it if it can
_MOMENTS = 256 * 1024 * 1024  # bytes that all groups take, if a group of _STEP channels can be had


@dataclass(frozen=True)
class Inputs:
    """The inputs x [in] of a linear, over all tokens of the texts.

    Attributes:
        largest: the largest |x| of each channel, float32 [in].
        moments: the sums of x x^T within groups of neighbouring channels, float32
            [in / group, group, group]; None where they were not asked for.
        tokens: how many they are of.
        typical_output: the median over the tokens of the product's sum of squares; None as above.
    """

    largest: np.ndarray
    moments: np.ndarray | None = None
    tokens: int = 0
    typical_output: float | None = None

    def divided(self, factors: np.ndarray) -> "Inputs":
        """Of the inputs divided by `factors` [in]; their product stays the same."""
        moments = self.moments
        if moments is not None:
            each = factors.reshape(moments.shape[:2])
            moments = moments / (each[:, :, None] * each[:, None, :])
        return replace(self, largest=self.largest / factors, moments=moments)


Calibration = dict[str, Inputs]  # name of a linear's matrix -> its inputs


def read_calibration(path: Path) -> list[str]:
    """Read example texts: JSON lines with text, or prompt and response; or one text a line.

    Raises:
        InputError: the file cannot be read, a line is no such object, or there is no text.
    """
    texts = []
    with ReadFailures(path, InputError), path.open("rb") as file:
        for line in (line for group in read_texts(file, "auto") for line in group):
            if line.text is None:
                raise InputError(f"{path}, line {line.number}: {line.error}")
            texts.append(line.text)
    if not texts:
        raise InputError(f"{path}: holds no text; calibration takes one text a line")
    return texts


def measure_inputs(
    graph: Path,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    moments: bool = True,
    progress: Progress = silent,
) -> Calibration:
    """Run the written graph on `texts`, one by one, on the CPU.

    The weights stay in their file, which is mapped. Moments take 256 MB, twice while a text runs:
    groups have 512 channels where that allows it, as in SmolLM2-135M, and 64 in Qwen3-4B. Over all
    inputs of a layer they would be 36 GB for the latter.

    Args:
        graph: score.onnx with its weights beside it; a probed copy is written there too.
        texts: as the guard will see them: from its domain, of its lengths.
        moments: whether the second moments are measured too.
        progress: called after each text.

    Raises:
        InputError: an input is not finite on some text.
    """
    written = GuardGraph(ir.load(graph))
    groups = list(by_input(written).values())
    channels = [_channels(group[0]) for group in groups]
    size = min(_GROUP, _MOMENTS // (4 * sum(channels))) if moments else 0
    names = [_probe(written, group[0], size) for group in groups]
    all_linears = [linear for group in groups for linear in group]
    sizes = [_probe_output(written, linear) for linear in all_linears] if moments else []
    totals: list[np.ndarray] = []
    outputs: list[list[np.ndarray]] = []  # of each text, the size of every linear's
    probes = [name for group in names for name in group]
    for found in _run(written, graph, tokenizer, texts, [*probes, *sizes]):
        totals = totals or [np.zeros_like(new) for new in found[: len(probes)]]
        merges = cycle((np.maximum, np.add) if moments else (np.maximum,))
        for merge, total, new in zip(merges, totals, found, strict=False):
            merge(total, new, out=total)
        outputs.append(found[len(probes) :])
        progress("calibrate", len(outputs), len(texts))
    each = iter(totals)
    inputs: dict[str, Inputs] = {}
    for group in groups:
        largest, sums = next(each), next(each) if moments else None
        if not all_finite(largest if sums is None else sums):
            raise InputError(
                f"calibration: the input of {group[0].product.name} is not finite on some text; "
                "export in a higher precision"
            )
        inputs |= {linear.matrix_name: Inputs(largest, sums) for linear in group}
    for linear, tokens in zip(
        all_linears, map(np.concatenate, zip(*outputs, strict=True)), strict=False
    ):
        inputs[linear.matrix_name] = replace(
            inputs[linear.matrix_name], tokens=len(tokens), typical_output=float(np.median(tokens))
        )
    return inputs


def _run(
    written: GuardGraph,
    graph: Path,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    outputs: Sequence[str],
) -> Iterator[list[np.ndarray]]:
    """Run the graph, written anew beside `graph`; yield its `outputs` for each text."""
    onnxruntime = import_onnxruntime()
    probed = graph.with_name("probed.onnx")
    ir.save(written.model, probed)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")  # it copies the weights
    session = onnxruntime.InferenceSession(str(probed), options, providers=["CPUExecutionProvider"])
    for ids in tokenizer.encode_batch([clean(text) for text in texts]):
        tokenizer.check_embedded(ids)
        tokens = np.array([ids], np.int64)
        feed = {INPUT_IDS: tokens, ATTENTION_MASK: np.ones_like(tokens)}
        yield session.run(outputs, feed)


def _channels(linear: Linear) -> int:
    if linear.matrix.const_value is None:
        raise AssertionError(f"{linear.matrix_name} has no values")
    return int(linear.matrix.const_value.shape.numpy()[0])


def _probe(written: GuardGraph, linear: Linear, size: int) -> list[str]:
    """Give the graph outputs, the `Inputs` of a linear; return their names.

    Args:
        size: channels of a group of moments at most, where whole blocks of them divide the input's;
            0 for no moments.
    """
    r = before(written, linear.product, f"{linear.product.name}/calibration")
    x = r.op("Cast", linear.x, to=int(ir.DataType.FLOAT))
    largest = r.op("ReduceMax", r.op("Abs", x), r.const([0, 1]), keepdims=0)
    if not size:
        return [_output(written, largest, 1)]
    channels = _channels(linear)
    whole = range(max(size // _STEP, 1) * _STEP, 0, -_STEP)
    group = next((n for n in whole if channels % n == 0), 1)
    groups = r.op("Reshape", x, r.const([-1, channels // group, group]))
    columns, rows = (r.op("Transpose", groups, perm=p) for p in ([1, 2, 0], [1, 0, 2]))
    return [_output(written, largest, 1), _output(written, r.op("MatMul", columns, rows), 3)]


def _probe_output(written: GuardGraph, linear: Linear) -> str:
    """Give the graph an output, the sum of squares of a product for each token; return its name."""
    y = linear.product.outputs[0]
    r = after(written, y, f"{linear.product.name}/output")
    y = r.op("Cast", y, to=int(ir.DataType.FLOAT))
    squares = r.op("ReduceSumSquare", y, r.const([-1]), keepdims=0)
    return _output(written, r.op("Reshape", squares, r.const([-1])), 1)


def _output(written: GuardGraph, value: ir.Value, rank: int) -> str:
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([None] * rank)
    written.model.graph.outputs.append(value)
    return str(value.name)
