"""A GPU's measured ceilings, and the least time that a batch can take on it.

As `roofline`: the slower of the products, at the measured rate of their dtype, and the weights,
each read once, at the measured bandwidth. Kernel launches, copies to and from the GPU, norms,
softmax and activations are not counted.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from siren_bench.engines.cost import ModelSize, passes
from siren_bench.engines.engine import Work
from siren_runtime.errors import BackendError

_SIZE = 8192  # of the square matrices
_COPY_BYTES = 1 << 31  # well beyond any cache
_ROUNDS = 10


@dataclass(frozen=True)
class GpuCeilings:
    """The best of several measurements with PyTorch.

    Attributes:
        device: The GPU's name.
        float32_ops, float16_ops, bfloat16_ops: Operations a second of a product of that dtype,
            float32 without TF32.
        copy_bytes: Bytes a second that a copy reads and writes.
    """

    device: str
    float32_ops: float
    float16_ops: float
    bfloat16_ops: float
    copy_bytes: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def require_gpu() -> str:
    """Return the GPU's name and compute capability.

    Raises:
        BackendError: PyTorch is missing or reaches no GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise BackendError(f"PyTorch cannot be imported ({error}); run scripts/bench-gpu") from None
    if not torch.cuda.is_available():
        raise BackendError(
            f"PyTorch {torch.__version__} reaches no CUDA GPU here; check nvidia-smi, and run "
            "scripts/bench-gpu, which sets up what a machine with one needs"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"


def used_gpu_memory() -> int:
    """Bytes of the GPU's memory in use, by this process and all others."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def measure_gpu_ceilings(
    name: str,
    device: str = "cuda",
    *,
    size: int = _SIZE,
    copy_bytes: int = _COPY_BYTES,
    rounds: int = _ROUNDS,
) -> GpuCeilings:
    """Measure the device that PyTorch calls `device`; takes a few seconds and 4 GB of it."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def rate(dtype: Any) -> float:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        return 2.0 * size**3 / _best(lambda: torch.mm(left, right), wait, rounds)

    def bandwidth() -> float:
        source = torch.ones(copy_bytes // 4, device=device)
        target = torch.empty_like(source)
        return 2 * copy_bytes / _best(lambda: target.copy_(source), wait, rounds)

    copied = bandwidth()
    ceilings = GpuCeilings(
        name,
        float32_ops=rate(torch.float32),
        float16_ops=rate(torch.float16),
        bfloat16_ops=rate(torch.bfloat16),
        copy_bytes=copied,
    )
    if device == "cuda":
        torch.cuda.empty_cache()
    return ceilings


def gpu_floor_seconds(
    work: Work, size: ModelSize, tokens: int, batch: int, ceilings: GpuCeilings
) -> float:
    """Return the least time that `batch` texts of `tokens` tokens can take together."""
    rate = {"float32": ceilings.float32_ops, "bfloat16": ceilings.bfloat16_ops}.get(
        work.dtype, ceilings.float16_ops
    )
    return sum(
        max(batch * one.operations / rate, one.weight_bytes / ceilings.copy_bytes)
        for one in passes(work, size, tokens)
    )


def gpu_ceilings_line(ceilings: GpuCeilings) -> str:
    """Say the ceilings in one sentence, for below a table."""
    return (
        f"{ceilings.device}, measured in the same run: float32 {ceilings.float32_ops / 1e12:.1f}, "
        f"float16 {ceilings.float16_ops / 1e12:.1f}, bfloat16 {ceilings.bfloat16_ops / 1e12:.1f} "
        f"TFLOP/s; memory copied at {ceilings.copy_bytes / 1e9:.0f} GB/s."
    )


def _best(call: Callable[[], object], wait: Callable[[], None], rounds: int) -> float:
    """The least seconds of several calls, after one that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        wait()
        start = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
