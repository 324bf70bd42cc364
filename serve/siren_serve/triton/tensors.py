"""What both models share: the guard that is loaded, strings in, verdicts out.

Triton's Python backend brings `triton_python_backend_utils`; elsewhere there is none.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from siren_runtime import Guard, ScoreResult
from siren_runtime.errors import InputError
from siren_runtime.streaming.result import StreamResult


def guard_of(args: dict[str, str], **options: Any) -> Guard:
    """Load the bundle that lies in the model's version, with the threads that its config says."""
    parameters = json.loads(args["model_config"])["parameters"]
    bundle = Path(args["model_repository"]) / args["model_version"] / "bundle"
    threads = int(parameters["threads"]["string_value"])
    return Guard.load(bundle, threads=threads, **options)


def strings(request: Any, name: str) -> list[str] | None:
    """The elements of a request's input; None where it has none of that name.

    Raises:
        InputError: one is not UTF-8.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    try:
        return [element.decode("utf-8") for element in tensor.as_numpy().reshape(-1)]
    except UnicodeDecodeError as error:
        raise InputError(f"input {name!r} is not UTF-8: {error}") from None


def response(results: Sequence[ScoreResult | StreamResult], shape: Sequence[int]) -> Any:
    """Verdicts as `score`, `is_harmful`, `tier` and `result`, each of `shape`.

    Too little known for a verdict of safe is harmful: there are two answers only.
    """
    columns = {
        "score": np.array([result.score for result in results], np.float64),
        "is_harmful": np.array([result.is_harmful is not False for result in results], np.bool_),
        "tier": np.array([(result.tier or "").encode() for result in results], np.object_),
        "result": np.array([json.dumps(r.to_dict()).encode() for r in results], np.object_),
    }
    tensors = [pb_utils.Tensor(name, v.reshape(shape)) for name, v in columns.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def failed(error: Exception, where: str = "") -> Any:
    """No verdict: why."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{where}{error}"))
