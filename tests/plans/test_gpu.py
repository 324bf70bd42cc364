"""What is asked of CUDA reaches it in the form that cuda-python takes, and its refusal is ours."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from siren_runtime.backends.tensorrt import gpu
from siren_runtime.backends.tensorrt.library import load_library, open_interface
from siren_runtime.bundle.files import write_whole
from siren_runtime.errors import BackendError

runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
no_gpu = pytest.mark.skipif(
    runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess,
    reason="this machine has a GPU",
)
STREAM = SimpleNamespace(stream=runtime.cudaStream_t(0))


def mirror() -> gpu.Mirror:
    made = object.__new__(gpu.Mirror)
    made._cuda, made.dtype = runtime, np.dtype(np.int64)
    made.device, made._host = SimpleNamespace(address=4096), 8192
    return made


def launch() -> None:
    graph = object.__new__(gpu.CudaGraph)
    graph._cuda, graph._stream = runtime, STREAM
    graph._executable = runtime.cudaGraphExec_t(0)
    graph.launch()


def wait() -> None:
    stream = object.__new__(gpu.CudaStream)
    stream._cuda, stream.stream = runtime, STREAM.stream
    stream.wait()


@no_gpu
@pytest.mark.parametrize(
    "call",
    [
        gpu.current_device,
        lambda: gpu.use_device(0),
        gpu.compute_capability,
        gpu.CudaStream,
        wait,
        lambda: gpu.Memory(16),
        lambda: gpu.Mirror((2, 3), np.float32),
        lambda: mirror().upload((2, 3), STREAM),
        lambda: mirror().download((2, 3), STREAM),
        lambda: gpu.CudaGraph(STREAM, lambda: None),
        launch,
    ],
    ids=[
        *("device", "use", "capability", "stream", "wait", "memory"),
        *("mirror", "upload", "download", "graph", "launch"),
    ],
)
def test_every_call_takes_the_bindings_own_arguments(monkeypatch, call):
    monkeypatch.setattr(gpu, "runtime", lambda: runtime)
    monkeypatch.setattr(gpu.Mirror, "__del__", lambda self: None)
    with pytest.raises(BackendError, match="CUDA failed: cudaError"):
        call()


def test_a_lack_of_gpu_memory_says_what_to_do():
    with pytest.raises(BackendError, match=r"cudaErrorMemoryAllocation; use a plan with smaller"):
        gpu.check((runtime.cudaError_t.cudaErrorMemoryAllocation, None))


def test_a_call_gives_nothing_a_value_or_several():
    done = runtime.cudaError_t.cudaSuccess
    assert gpu.check((done,)) == ()
    assert gpu.check((done, 7)) == 7
    assert gpu.check((done, 1, 2)) == (1, 2)


def test_a_library_that_cannot_start_says_why(rtx):
    logger = SimpleNamespace(errors=["CUDA initialization failure with error: 35"])
    with pytest.raises(BackendError, match=r"cannot start its runtime: CUDA init.*nvidia-smi"):
        open_interface(rtx, "Runtime", logger)


def test_a_library_older_than_supported_is_refused(rtx, monkeypatch):
    monkeypatch.setattr(rtx.trt, "__version__", "1.1.0")
    with pytest.raises(BackendError, match=r"tensorrt-rtx 1\.1\.0 .* needs 1\.2 or later"):
        load_library("tensorrt-rtx")


def test_threads_that_write_one_file_leave_one_of_their_versions(tmp_path):
    versions = [bytes([i]) * (1 << 16) * (i + 1) for i in range(8)]

    def write(data: bytes) -> None:
        for _ in range(5):
            write_whole(tmp_path / "cache", memoryview(data), BackendError)

    threads = [threading.Thread(target=write, args=(data,)) for data in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "cache").read_bytes() in versions
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
