"""What every timing of engines side by side needs."""

import time

# ONNX Runtime's threads spin for about 50 ms after their work, and so slow down whoever comes next.
_SECONDS = 0.1


def settle() -> None:
    """Wait until the threads of the engine that ran last are asleep."""
    time.sleep(_SECONDS)
