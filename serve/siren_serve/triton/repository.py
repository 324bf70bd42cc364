"""A model repository: of each model a folder with config.pbtxt and, below `1`, what it runs."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from siren_runtime.backends.tensorrt.plan import Plan, PlanRecord, is_stale, recorded_plans
from siren_runtime.bundle.graphs import TensorSpec
from siren_runtime.bundle.manifest import MANIFEST_FILE
from siren_runtime.bundle.reader import Bundle, load_bundle
from siren_runtime.errors import InputError

Form = Literal["text", "stream", "tokens", "plan"]
_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}
_VERDICT = {"score": "FP64", "is_harmful": "BOOL", "tier": "STRING", "result": "STRING"}

_MODEL = '''"""Written by siren triton."""

import os
import sys

# The backend's Python does not look at it.
sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))

from siren_serve.triton.{form}_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class ModelSettings:
    """How Triton runs a guard.

    Attributes:
        threads: CPU threads of an engine run; a plan has none.
        instances: engines at once, each a process with the bundle in memory (`tokens` and `plan`: a
            session).
        max_batch: texts of a run, and sequences that are open at once; a plan's profiles bound it.
        max_queue: requests that may wait; more are refused.
        timeout_s: seconds that one may wait, or that a sequence may have no piece.
    """

    threads: int = 1
    instances: int = 1
    max_batch: int = 64
    max_queue: int = 512
    timeout_s: float = 60.0


def write_model(
    bundle_folder: Path, repository: Path, name: str, form: Form, settings: ModelSettings
) -> Path:
    """Add a model to a repository, in whose place it is whole at once.

    Args:
        form: "text", whole texts, and "stream", growing ones, each a sequence: both by the runtime
            in Triton's Python backend. "tokens", score.onnx in its ONNX Runtime backend. "plan",
            the newest TensorRT plan of it in its TensorRT backend.

    Returns:
        The model's folder.

    Raises:
        BundleError: the bundle cannot be used.
        InputError: a model of that name is there, the bundle is for another engine, has no plan or
            scores trajectories.
        BackendError: a plan was changed.
    """
    bundle = load_bundle(bundle_folder, verify="full")
    place, hidden = repository / name, repository / f".{name}"
    if place.exists():
        raise InputError(f"{place} is there already; remove it, or give another --name")
    if bundle.manifest.is_trajectory:
        raise InputError(f"{bundle_folder} scores trajectories, and Triton's models take texts")
    if form == "tokens" and bundle.manifest.target != "onnxruntime":
        raise InputError(
            f"{bundle_folder} is for {bundle.manifest.target}; the form of tokens takes a bundle "
            "for onnxruntime"
        )
    plan = _newest_plan(bundle) if form == "plan" else None
    shutil.rmtree(hidden, ignore_errors=True)
    version = hidden / "1"
    version.mkdir(parents=True)
    if plan is not None:
        (version / "model.plan").write_bytes(plan.read())
        config = _plan_config(bundle, settings, plan)
    elif form == "tokens":
        _copy_graph(bundle, version)
        config = _tokens_config(bundle, settings)
    else:
        _copy_bundle(bundle, version / "bundle")
        (version / "model.py").write_text(_MODEL.format(form=form), encoding="utf-8")
        config = _text_config(settings) if form == "text" else _stream_config(settings)
    (hidden / "config.pbtxt").write_text(f'name: "{name}"\n{config}', encoding="utf-8")
    return hidden.rename(place)


def _copy_bundle(bundle: Bundle, folder: Path) -> None:
    for file in (MANIFEST_FILE, *bundle.manifest.files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(file), folder / file)


def _copy_graph(bundle: Bundle, folder: Path) -> None:
    """score.onnx under the name that Triton looks for, with the weights that it names."""
    graph = bundle.manifest.graphs["score"].file
    shutil.copyfile(bundle.file(graph), folder / "model.onnx")
    for location, file in bundle.weights_of(graph, bundle.read(graph)).items():
        shutil.copyfile(bundle.file(file), folder / location)


def _newest_plan(bundle: Bundle) -> Plan:
    """The plan of score.onnx that TensorRT, and not TensorRT-RTX, compiled last."""
    plans = [
        Plan(path, record)
        for path, record in recorded_plans(bundle).items()
        if isinstance(record, PlanRecord)
        and (record.flavor, record.graph) == ("tensorrt", "score")
        and not is_stale(record, bundle)
    ]
    if not plans:
        raise InputError(
            f"{bundle.path}: has no plan of TensorRT for its score graph as it is; run siren build "
            f"{bundle.path} --flavor tensorrt, with the version of TensorRT that the server has"
        )
    return max(plans, key=lambda plan: plan.record.created)


def _text_config(settings: ModelSettings) -> str:
    inputs = [_tensor(name, "TYPE_STRING", "[1]", "optional: true")
              for name in ("text", "prompt", "response")]  # fmt: skip
    return _PYTHON + _tensors("input", inputs) + _outputs() + _batching(settings) + _run(settings)


def _stream_config(settings: ModelSettings) -> str:
    controls = "\n".join(
        f'    {{ name: "{name}" control [{{ kind: CONTROL_SEQUENCE_{name} {values} }}] }},'
        for name, values in (
            ("START", "int32_false_true: [0, 1]"),
            ("END", "int32_false_true: [0, 1]"),
            ("CORRID", "data_type: TYPE_UINT64"),
        )
    ).rstrip(",")
    inputs = [
        _tensor("text", "TYPE_STRING", "[-1]"),
        _tensor("prompt", "TYPE_STRING", "[1]", "optional: true"),
    ]
    return (
        f"{_PYTHON}model_transaction_policy {{ decoupled: true }}\n"
        f"sequence_batching {{\n"
        f"  max_sequence_idle_microseconds: {_microseconds(settings)}\n"
        f"  oldest {{ max_candidate_sequences: {settings.max_batch} }}\n"
        f"  control_input [\n{controls}\n  ]\n}}\n"
        + _tensors("input", inputs) + _outputs() + _run(settings)
    )  # fmt: skip


def _tokens_config(bundle: Bundle, settings: ModelSettings) -> str:
    return (
        f'platform: "onnxruntime_onnx"\n{_graph(bundle)}'
        f"{_batching(settings)}{_run(settings, 'intra_op_thread_count')}"
    )


def _plan_config(bundle: Bundle, settings: ModelSettings, plan: Plan) -> str:
    """Profiles that take a batch as large as Triton may make one; it takes the nearest of them."""
    largest = [profile.max.batch for profile in plan.record.profiles]
    batch = min(settings.max_batch, max(largest))
    profiles = ", ".join(f'"{n}"' for n, size in enumerate(largest) if size >= batch)
    return (
        f'platform: "tensorrt_plan"\n{_graph(bundle)}{_batching(settings)}'
        f"max_batch_size: {batch}\n"
        f"instance_group [{{ count: {settings.instances} kind: KIND_GPU profile: [{profiles}] }}]\n"
    )


_PYTHON = 'backend: "python"\n'


def _graph(bundle: Bundle) -> str:
    graph = bundle.manifest.graphs["score"]
    return "".join(
        _tensors(which, [_spec(tensor) for tensor in tensors])
        for which, tensors in (("input", graph.inputs), ("output", graph.outputs))
    )


def _spec(tensor: TensorSpec) -> str:
    """A tensor of a graph behind its dimension of the batch; one of rank 1 has none left."""
    sizes = [str(size) if isinstance(size, int) else "-1" for size in tensor.shape[1:]]
    dims = f"[{', '.join(sizes)}]" if sizes else "[1] reshape: { shape: [] }"
    return _tensor(tensor.name, _TYPES[tensor.dtype], dims)


def _tensor(name: str, kind: str, dims: str, more: str = "") -> str:
    return f'  {{ name: "{name}" data_type: {kind} dims: {dims} {more}'.rstrip() + " }"


def _tensors(which: str, tensors: list[str]) -> str:
    lines = ",\n".join(tensors)
    return f"{which} [\n{lines}\n]\n"


def _outputs() -> str:
    return _tensors("output", [_tensor(n, f"TYPE_{kind}", "[1]") for n, kind in _VERDICT.items()])


def _batching(settings: ModelSettings) -> str:
    """Texts that come while an engine is busy share the next run; nobody waits for company."""
    return (
        "dynamic_batching {\n"
        "  default_queue_policy {\n"
        "    timeout_action: REJECT\n"
        f"    default_timeout_microseconds: {_microseconds(settings)}\n"
        f"    max_queue_size: {settings.max_queue}\n"
        "  }\n}\n"
    )


def _run(settings: ModelSettings, threads: str = "threads") -> str:
    return (
        f"max_batch_size: {settings.max_batch}\n"
        f"instance_group [{{ count: {settings.instances} kind: KIND_CPU }}]\n"
        f'parameters {{ key: "{threads}" value: {{ string_value: "{settings.threads}" }} }}\n'
    )


def _microseconds(settings: ModelSettings) -> int:
    return round(1e6 * settings.timeout_s)
