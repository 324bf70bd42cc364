"""The GPU through cuda-python, no more of it than the TensorRT backend calls.

Its errors become BackendErrors. What needs a GPU here has not been run on one.
"""

import ctypes
import functools
import math
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from siren_runtime.errors import BackendError, install_hint, is_of_caller


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


@functools.cache  # of a success; a failure is tried again
def runtime() -> ModuleType:
    """Import CUDA's runtime API and see that a GPU is there.

    Raises:
        BackendError: cuda-python is missing, or there is no GPU or driver.
    """
    try:
        from cuda.bindings import runtime as cuda
    except (ImportError, OSError, RuntimeError) as error:
        if is_of_caller(error):
            raise
        raise BackendError(
            f"cuda-python cannot be imported ({error}); {install_hint('tensorrt')}, or with "
            "tensorrt-rtx in the place of tensorrt"
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


class CudaStream:
    """A CUDA stream on the thread's current GPU. `handle` is its address."""

    def __init__(self) -> None:
        self._cuda = runtime()
        self.stream = check(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))
        self.handle = int(self.stream)

    def wait(self) -> None:
        """Wait until all that was put on the stream is done."""
        check(self._cuda.cudaStreamSynchronize(self.stream))

    def __del__(self) -> None:
        if hasattr(self, "stream"):
            self._cuda.cudaStreamDestroy(self.stream)


class Memory:
    """Device memory of `size` bytes at `address`."""

    def __init__(self, size: int) -> None:
        self._cuda = runtime()
        self.size = size
        self.address = int(check(self._cuda.cudaMalloc(max(size, 1))))

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._cuda.cudaFree(self.address)


class Mirror:
    """An array of at most `shape` in device memory and in pinned host memory."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._cuda = runtime()
        self.dtype = np.dtype(dtype)
        self.device = Memory(math.prod(shape) * self.dtype.itemsize)
        self._host = int(check(self._cuda.cudaMallocHost(self.device.size)))

    def host(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """The first values of the pinned memory as an array of `shape`; no copy is made."""
        size = math.prod(shape) * self.dtype.itemsize
        block = memoryview((ctypes.c_byte * size).from_address(self._host))
        array: npt.NDArray[Any] = np.frombuffer(block, self.dtype).reshape(shape)
        return array

    def upload(self, shape: tuple[int, ...], stream: CudaStream) -> None:
        """Put a copy of the first values, host to device, on the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(self.device.address, self._host, shape, kind, stream)

    def download(self, shape: tuple[int, ...], stream: CudaStream) -> None:
        """Put a copy of the first values, device to host, on the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(self._host, self.device.address, shape, kind, stream)

    def _copy(
        self, to: int, source: int, shape: tuple[int, ...], kind: Any, stream: CudaStream
    ) -> None:
        size = math.prod(shape) * self.dtype.itemsize
        check(self._cuda.cudaMemcpyAsync(to, source, size, kind, stream.stream))

    def __del__(self) -> None:
        if hasattr(self, "_host"):
            self._cuda.cudaFreeHost(self._host)


class CudaGraph:
    """A CUDA graph of what `record` puts on the CUDA stream."""

    def __init__(self, stream: CudaStream, record: Any) -> None:
        self._cuda = cuda = runtime()
        self._stream = stream
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cuda.cudaStreamBeginCapture(stream.stream, mode))
        try:
            record()
        except BaseException:
            cuda.cudaStreamEndCapture(stream.stream)
            cuda.cudaGetLastError()  # a capture that broke is not the next call's error
            raise
        graph = check(cuda.cudaStreamEndCapture(stream.stream))
        try:
            self._executable = check(cuda.cudaGraphInstantiate(graph, 0))
        finally:
            cuda.cudaGraphDestroy(graph)

    def launch(self) -> None:
        """Put the graph's work on the stream."""
        check(self._cuda.cudaGraphLaunch(self._executable, self._stream.stream))

    def __del__(self) -> None:
        if hasattr(self, "_executable"):
            self._cuda.cudaGraphExecDestroy(self._executable)


def current_device() -> int:
    """Return the number of the GPU that this thread uses.

    Raises:
        BackendError: there is none.
    """
    return int(check(runtime().cudaGetDevice()))


def use_device(device: int) -> None:
    """Make a GPU the current one of this thread."""
    check(runtime().cudaSetDevice(device))


def _name(cuda: Any, status: Any) -> str:
    return str(cuda.cudaGetErrorName(status)[1].decode())
