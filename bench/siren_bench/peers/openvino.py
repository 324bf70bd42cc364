"""Our own float32 graph in OpenVINO, its weights compressed to int8 by NNCF where asked for."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from siren_bench.engines.engine import GuardEngine, Work
from siren_runtime.commands.origin import installed_versions

if TYPE_CHECKING:
    from siren_runtime.backends.outputs import Outputs, TokenArray


OpenVinoDtype = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class OpenVino(GuardEngine):
    """score.onnx of a float32 bundle as OpenVINO's CPU plugin runs it.

    Attributes:
        bundle: Whose tokenizer and manifest are used.
        graph: What is loaded: the bundle's score.onnx, or OpenVINO's form of it.
    """

    bundle: Path
    graph: Path
    dtype: OpenVinoDtype
    threads: int

    @property
    def name(self) -> str:
        return f"OpenVINO {self.dtype}{' weights' if self.dtype == 'int8' else ''}"

    @property
    def model_key(self) -> Hashable:
        return self

    @property
    def work(self) -> Work:
        return Work(self.dtype)

    def versions(self) -> dict[str, str]:
        return installed_versions("openvino", *(["nncf"] if self.dtype == "int8" else []))

    def load(self) -> Any:
        from siren_runtime import Guard
        from siren_runtime.bundle.reader import load_bundle
        from siren_runtime.scoring.engines import Engines
        from siren_runtime.scoring.scorer import Scorer
        from siren_runtime.text.reading import LLM_SIREN_LIMITS

        bundle = load_bundle(self.bundle)
        engines = Engines(_Backend(self.graph, self.dtype, self.threads))
        return Guard([Scorer(bundle, engines)], limits=LLM_SIREN_LIMITS)


class _Backend:
    """siren_runtime's backend protocol on an OpenVINO compiled model."""

    name = "openvino"
    token_budget = 512  # as the runtime's on a CPU

    def __init__(self, graph: Path, dtype: OpenVinoDtype, threads: int) -> None:
        import openvino

        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if dtype != "int8":  # whose other operators take what OpenVINO thinks best for the CPU
            settings["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[dtype]
        self._request = openvino.Core().compile_model(graph, "CPU", settings)

    def run(self, input_ids: "TokenArray", attention_mask: "TokenArray") -> "Outputs":
        from siren_runtime.backends.outputs import Outputs
        from siren_runtime.bundle.graphs import (
            ATTENTION_MASK,
            FEATURES,
            INPUT_IDS,
            LOGITS,
            SCORE,
        )

        values = self._request({INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask})
        return Outputs(*(values[name] for name in (SCORE, LOGITS, FEATURES)))
