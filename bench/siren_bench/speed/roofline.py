"""The machine's measured ceilings, and the share of them that an engine reaches.

An engine is bound by the slower of two things: the products, at the machine's rate for their
dtype, and the weights, each read once, at its memory bandwidth (Williams et al., "Roofline", CACM
2009). Activations, norms and attention's softmax are not counted, so no engine reaches 100 %.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from siren_bench.engines.cost import ModelSize, passes
from siren_bench.engines.engine import Work
from siren_bench.engines.process import in_fresh_process
from siren_runtime.backends.onnxruntime.providers import import_onnxruntime

_SIZE = 2048  # of the square matrices
_BFLOAT16_SIZE = 512
_COPY_BYTES = 1 << 29  # well beyond any cache
_ROUNDS = 5


@dataclass(frozen=True)
class Ceilings:
    """The best of several measurements with a number of threads.

    Attributes:
        float32_ops: Operations a second of a float32 product, the better of PyTorch and ONNX
            Runtime.
        bfloat16_ops: The same in bfloat16, PyTorch.
        int8_ops: The same in uint8 by int8, ONNX Runtime's MatMulInteger.
        read_bytes: Bytes a second that are read from memory by a sum.
        copy_bytes: Bytes a second that a copy reads and writes.
    """

    threads: int
    float32_ops: float
    bfloat16_ops: float
    int8_ops: float
    read_bytes: float
    copy_bytes: float

    def or_better(self, other: "Ceilings") -> "Ceilings":
        """Return the higher of each of two measurements, one before and one after a benchmark."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Ceilings(*(max(pair) for pair in pairs))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def measure_ceilings(
    threads: int, *, size: int = _SIZE, copy_bytes: int = _COPY_BYTES, rounds: int = _ROUNDS
) -> Ceilings:
    """Measure the machine in a fresh process; takes a few seconds."""
    return in_fresh_process(_measure, threads, size, copy_bytes, rounds)


def floor_seconds(work: Work, size: ModelSize, tokens: int, ceilings: Ceilings) -> float:
    """Return the least time that one text of `tokens` tokens can take on this machine."""
    rate = {
        "float32": ceilings.float32_ops,
        "float16": ceilings.float32_ops,  # CPUs multiply it as float32
        "bfloat16": max(ceilings.bfloat16_ops, ceilings.float32_ops),
        "int8": ceilings.int8_ops,
        "int4": ceilings.int8_ops,
    }[work.dtype]
    bandwidth = max(ceilings.read_bytes, ceilings.copy_bytes)
    return sum(
        max(one.operations / rate, one.weight_bytes / bandwidth)
        for one in passes(work, size, tokens)
    )


def ceilings_line(ceilings: Ceilings) -> str:
    """Say the ceilings in one sentence, for below a table."""
    return (
        f"Measured in the same run with {ceilings.threads} threads: "
        f"float32 {ceilings.float32_ops / 1e9:.0f}, bfloat16 {ceilings.bfloat16_ops / 1e9:.1f}, "
        f"int8 {ceilings.int8_ops / 1e9:.0f} GFLOP/s; memory read at "
        f"{ceilings.read_bytes / 1e9:.1f} GB/s, copied at {ceilings.copy_bytes / 1e9:.1f} GB/s."
    )


def _measure(threads: int, size: int, copy_bytes: int, rounds: int) -> Ceilings:
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    a8 = rng.integers(0, 255, (size, size), np.uint8)
    b8 = rng.integers(-127, 127, (size, size), np.int8)
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    # Where the CPU has no bfloat16 products, PyTorch's are slow: a smaller one tells as much.
    small = min(size, _BFLOAT16_SIZE)
    half = first[:small, :small].bfloat16(), second[:small, :small].bfloat16()
    source = torch.ones(copy_bytes // 4, dtype=torch.float32)
    target = torch.empty_like(source)
    float_session = _product("MatMul", a, b, threads)
    int_session = _product("MatMulInteger", a8, b8, threads)

    operations = 2.0 * size**3
    return Ceilings(
        threads=threads,
        float32_ops=operations
        / min(
            _best(lambda: torch.mm(first, second), rounds),
            _best(lambda: float_session.run(None, {"a": a}), rounds),
        ),
        bfloat16_ops=2.0 * small**3 / _best(lambda: torch.nn.functional.linear(*half), rounds),
        int8_ops=operations / _best(lambda: int_session.run(None, {"a": a8}), rounds),
        read_bytes=copy_bytes / _best(source.sum, rounds),
        copy_bytes=2 * copy_bytes / _best(lambda: target.copy_(source), rounds),
    )


def _product(op_type: str, left: Any, right: Any, threads: int) -> Any:
    """An ONNX Runtime session of the product of an input like `left` with the constant `right`."""
    import onnx_ir as ir

    onnxruntime = import_onnxruntime()
    factor = ir.val("a", dtype=ir.tensor(left).dtype, shape=list(left.shape))
    weight = ir.val("b", const_value=ir.tensor(right, name="b"))
    weight.shape, weight.type = ir.Shape(right.shape), ir.TensorType(ir.tensor(right).dtype)
    node = ir.node(op_type, [factor, weight])
    (output,) = node.outputs
    result = ir.DataType.FLOAT if op_type == "MatMul" else ir.DataType.INT32
    output.name, output.type = "y", ir.TensorType(result)
    output.shape = ir.Shape(right.shape)
    graph = ir.Graph(
        [factor], [output], nodes=[node], initializers=[weight], opset_imports={"": 21}
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return onnxruntime.InferenceSession(model, options)


def _best(function: Callable[[], object], rounds: int) -> float:
    """The least seconds of several calls, after one that does not count."""
    function()
    seconds: Sequence[float] = [_timed(function) for _ in range(rounds)]
    return min(seconds)


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
