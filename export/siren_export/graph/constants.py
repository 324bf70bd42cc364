"""Small constants that are stored inside a graph, each once."""

from collections.abc import MutableMapping

import numpy as np
import onnx_ir as ir


def constant(
    initializers: MutableMapping[str, ir.Value], value: float | list[int], dtype: ir.DataType
) -> ir.Value:
    """A scalar or short vector among a graph's initializers, shared by equal uses."""
    name = f"const.{dtype.name.lower()}.{value}".replace(" ", "")
    if name not in initializers:
        tensor = ir.tensor(np.array(value, dtype=dtype.numpy()), name=name)
        initializers[name] = ir.val(name, const_value=tensor)
    return initializers[name]
