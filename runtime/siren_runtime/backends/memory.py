"""Give memory that was freed back to the system."""

import ctypes
import sys


def release_freed_memory() -> None:
    """Make glibc hand freed pages back; elsewhere, do nothing.

    Weights that ONNX Runtime re-packs, and those of a session that was closed, leave holes in the
    heap that glibc keeps: of a 0.6B guard in 8 bits, more than the guard itself takes.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
