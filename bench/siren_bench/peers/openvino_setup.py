"""Prepare OpenVINO as a peer: what it needs here, and weights compressed to int8."""

import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

from siren_bench.engines.process import in_fresh_process
from siren_bench.records.kept import made_whole
from siren_runtime.errors import install_hint

from .missing import PeerMissing
from .openvino import OpenVino, OpenVinoDtype


def make_openvino(bundle: Path, dtype: OpenVinoDtype, threads: int, folder: Path) -> OpenVino:
    """Prepare OpenVINO on a float32 bundle; compressed weights are written to `folder`.

    Raises:
        PeerMissing: OpenVINO or NNCF is not installed, or the CPU has no bfloat16.
    """
    for module in ("openvino", *(["nncf"] if dtype == "int8" else [])):
        if find_spec(module) is None:
            raise PeerMissing(f"{module} is not installed; {install_hint('bench-peers')}")
    if dtype == "bfloat16" and "BF16" not in in_fresh_process(_capabilities):
        raise PeerMissing("this CPU has no bfloat16 arithmetic that OpenVINO can use")
    graph = bundle / "score.onnx"
    if dtype == "int8":
        compressed = folder / f"{bundle.name}-openvino-int8" / "score.xml"
        if not compressed.exists():
            in_fresh_process(_compress, graph, compressed)
        graph = compressed
    return OpenVino(bundle, graph, dtype, threads)


def _capabilities() -> list[str]:
    import openvino

    return list(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _compress(graph: Path, target: Path) -> None:
    import nncf
    import openvino

    with redirect_stdout(sys.stderr):  # where progress belongs
        model = nncf.compress_weights(openvino.Core().read_model(graph))
    with made_whole(target.parent) as unfinished:
        unfinished.mkdir(exist_ok=True)
        openvino.save_model(model, unfinished / target.name, compress_to_fp16=False)
