"""What a matrix does in its block; passes choose by it."""

from typing import Literal

# An MLP without a gate goes up by "mlp_up" alone.
Role = Literal["query", "key", "value", "attention_output", "mlp_gate", "mlp_up", "mlp_down"]
