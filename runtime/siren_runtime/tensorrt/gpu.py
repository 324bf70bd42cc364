"""The GPU through cuda-python, no more of it than the TensorRT backend calls.

Its errors become BackendErrors. What needs a GPU here has not been run on one.
"""

from types import ModuleType
from typing import Any

from siren_runtime.errors import BackendError


def compute_capability() -> str:
    """Return the compute capability of the current GPU, such as "8.7".

    Raises:
        BackendError: cuda-python is missing, or there is no GPU or driver.
    """
    cuda = runtime()
    device = check(cuda.cudaGetDevice())
    attribute = cuda.cudaDeviceAttr
    major = check(cuda.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, device))
    minor = check(cuda.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, device))
    return f"{major}.{minor}"


def runtime() -> ModuleType:
    """Import CUDA's runtime API and see that a GPU is there.

    Raises:
        BackendError: cuda-python is missing, or there is no GPU or driver.
    """
    try:
        from cuda.bindings import runtime as cuda
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"cuda-python cannot be imported ({error}); pip install 'siren-edge[tensorrt]' or "
            "'siren-edge[tensorrt-rtx]'"
        ) from error
    status, count = cuda.cudaGetDeviceCount()
    if status != cuda.cudaError_t.cudaSuccess or not count:
        raise BackendError(
            f"no CUDA GPU can be used here ({_name(cuda, status)}); check nvidia-smi and the "
            "driver, or load with backend='cpu'"
        )
    module: ModuleType = cuda
    return module


def check(result: tuple[Any, ...]) -> Any:
    """Return what a CUDA call gave beside its error code: nothing, a value, or several.

    Raises:
        BackendError: the call failed.
    """
    from cuda.bindings import runtime as cuda

    status, *values = result
    if status != cuda.cudaError_t.cudaSuccess:
        memory = status == cuda.cudaError_t.cudaErrorMemoryAllocation
        hint = "; use a plan with smaller profiles or free GPU memory" if memory else ""
        raise BackendError(f"CUDA failed: {_name(cuda, status)}{hint}")
    return values[0] if len(values) == 1 else tuple(values)


def _name(cuda: Any, status: Any) -> str:
    return str(cuda.cudaGetErrorName(status)[1].decode())
