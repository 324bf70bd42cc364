"""The activation functions that configs name, as ONNX operators."""

import onnx_ir as ir

from siren_runtime.errors import CheckpointError

from .builder import GraphBuilder

_GELU = ("gelu", "gelu_python")
_GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate")
_ONE_OPERATOR = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
ACTIVATIONS = (*_GELU, *_GELU_TANH, *_ONE_OPERATOR, "silu", "swish", "quick_gelu")


def check_activation(name: str, origin: str) -> None:
    """Refuse an activation that the graphs do not have.

    Raises:
        CheckpointError: it is not one of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise CheckpointError(
            f"{origin}: hidden_act {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )


def activation(g: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
    """Apply the activation that transformers knows by `name`, one of `ACTIVATIONS`."""
    if name in _GELU:
        return g.op("Gelu", x, approximate="none")
    if name in _GELU_TANH:
        return g.op("Gelu", x, approximate="tanh")
    if name in _ONE_OPERATOR:
        return g.op(_ONE_OPERATOR[name], x)
    scaled = x if name != "quick_gelu" else g.op("Mul", x, g.const(1.702, g.compute))
    return g.op("Mul", x, g.op("Sigmoid", scaled))
