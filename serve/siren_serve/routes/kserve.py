"""KServe's open inference protocol, version 2, and the `:predict` of version 1.

A guard is a model with one input, `text` (BYTES, any shape), and three outputs of as many elements:
`score` (FP64), `is_harmful` (BOOL; true also where too little of a text can be read) and `tier`
(BYTES). Tensors come as JSON or in the binary form that Triton's client sends by default.
"""

import struct
from math import prod
from typing import Any, Literal

import msgspec
from litestar import Request, get, post
from litestar.datastructures import State

from siren_runtime import __version__
from siren_runtime.scoring.result import ScoreResult
from siren_serve.bodies import parted
from siren_serve.errors import RefusedRequest
from siren_serve.messages import checked_count

_MOST_AXES = 8
_INPUT = {"name": "text", "datatype": "BYTES", "shape": [-1]}
_OUTPUTS = {"score": "FP64", "is_harmful": "BOOL", "tier": "BYTES"}


class InputParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an input may say beside its data; it is looked at where these stand behind the JSON."""

    binary_data_size: int | None = None
    content_type: Literal["str"] | None = None  # MLServer's clients say so of text


class OutputParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an output is asked for; it is answered as JSON, which clients read too."""

    binary_data: bool = False


class RequestParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request may say beside its tensors. None of it changes a verdict, so it is not read.

    Others of Triton's would: `sequence_id` and its kin make texts pieces of one.
    """

    binary_data_output: bool = False
    content_type: Literal["str"] | None = None
    priority: int = 0
    timeout: int | None = None


class InputTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input; its data stand here or behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: InputParameters = InputParameters()


class OutputWanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An output that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An inference request."""

    inputs: list[InputTensor]
    id: str | None = None
    outputs: list[OutputWanted] | None = None
    parameters: RequestParameters = RequestParameters()


class PredictV1(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Version 1's request."""

    instances: list[str]


def _bad(message: str) -> RefusedRequest:
    return RefusedRequest(422, "cannot_be_scored", message)


def _flat(data: list[Any]) -> list[Any]:
    return [one for item in data for one in (_flat(item) if isinstance(item, list) else [item])]


def _unpacked(data: bytes) -> list[str]:
    """Elements of BYTES, each behind its length in four bytes, the lowest first."""
    texts, start = [], 0
    try:
        while start < len(data):
            (length,) = struct.unpack_from("<I", data, start)
            start += 4 + length
            if start > len(data):
                raise _bad("the binary data of input 'text' ends within an element")
            texts.append(data[start - length : start].decode("utf-8"))
    except (struct.error, UnicodeDecodeError) as error:
        raise _bad(f"the binary data of input 'text' cannot be read: {error}") from None
    return texts


def _texts(request: InferRequest, behind: bytes) -> list[str]:
    """The elements of the input `text`."""
    if len(request.inputs) != 1 or request.inputs[0].name != "text":
        names = [tensor.name for tensor in request.inputs]
        raise _bad(f"a guard has one input, 'text'; found {names}")
    tensor = request.inputs[0]
    if tensor.datatype != "BYTES":
        raise _bad(f"input 'text' is of BYTES, found {tensor.datatype}")
    if tensor.data is None:
        if tensor.parameters.binary_data_size != len(behind):
            raise _bad(f"{len(behind)} bytes follow, which is not what binary_data_size says")
        texts: list[Any] = _unpacked(behind)
    else:
        if behind:
            raise _bad("input 'text' has data, and more follows behind the JSON")
        texts = _flat(tensor.data)
    if not all(isinstance(text, str) for text in texts):
        raise _bad("input 'text' has data that are no strings")
    shape = tensor.shape
    if len(shape) > _MOST_AXES or min(shape, default=1) < 0 or prod(shape) != len(texts):
        raise _bad(f"input 'text' has {len(texts)} strings, which is not what its shape says")
    return texts


def _tensor(name: str, shape: list[int], results: list[ScoreResult]) -> dict[str, Any]:
    values: dict[str, list[Any]] = {
        "score": [result.score for result in results],
        "is_harmful": [result.is_harmful is not False for result in results],
        "tier": [result.tier or "" for result in results],
    }
    return {"name": name, "datatype": _OUTPUTS[name], "shape": shape, "data": values[name]}


@post("/v2/models/{name:str}/infer", status_code=200, tags=["KServe"])
async def infer(name: str, request: Request[Any, Any, Any], state: State) -> dict[str, Any]:
    """Score texts as an inference of version 2; the body is an `InferRequest`.

    Behind it may stand the text, if `Inference-Header-Content-Length` says where the JSON ends.
    """
    head, behind = parted(request.scope, await request.body())
    served = state.guards.get(name)  # after what is waited for, when another may have its name
    asked = msgspec.json.decode(head, type=InferRequest)
    wanted = [output.name for output in asked.outputs or ()] or [*_OUTPUTS]
    if unknown := [output for output in wanted if output not in _OUTPUTS]:
        raise _bad(f"a guard has the outputs {', '.join(_OUTPUTS)}; found {unknown}")
    texts = checked_count([*_texts(asked, behind)], state.settings.max_texts)
    results = await served.score_all(texts, deadline=state.settings.timeout_s)
    shape = asked.inputs[0].shape
    answer: dict[str, Any] = {"model_name": name, "model_version": "1"}
    answer["outputs"] = [_tensor(output, shape, results) for output in wanted]
    return answer if asked.id is None else {**answer, "id": asked.id}


@post("/v1/models/{name:str}", status_code=200, tags=["KServe"])
async def predict_v1(name: str, data: PredictV1, state: State) -> dict[str, Any]:
    """Score texts as `/v1/models/NAME:predict` of version 1; what is harmful has 1."""
    model, _, verb = name.rpartition(":")
    if verb != "predict":
        raise RefusedRequest(404, "not_found", f"no {name!r}; POST /v1/models/NAME:predict")
    served = state.guards.get(model)
    texts = checked_count([*data.instances], state.settings.max_texts)
    results = await served.score_all(texts, deadline=state.settings.timeout_s)
    return {"predictions": [_numbers(result) for result in results]}


def _numbers(result: ScoreResult) -> dict[str, float]:
    """A prediction as clients of version 1 read it: a number for each name."""
    return {
        "score": result.score,
        "risk": result.risk,
        "is_harmful": float(result.is_harmful is not False),
        "threshold": result.threshold,
    }


@get("/v2", tags=["KServe"])
async def server() -> dict[str, Any]:
    """Say what this server is."""
    return {"name": "siren-edge", "version": __version__, "extensions": ["binary_tensor_data"]}


@get("/v2/models/{name:str}", tags=["KServe"])
async def model(name: str, state: State) -> dict[str, Any]:
    """Say what a guard takes and gives."""
    state.guards.get(name)
    outputs = [{"name": n, "datatype": kind, "shape": [-1]} for n, kind in _OUTPUTS.items()]
    return {
        "name": name,
        "versions": ["1"],
        "platform": "siren_edge",
        "inputs": [_INPUT],
        "outputs": outputs,
    }


@get("/v2/models/{name:str}/ready", tags=["KServe"])
async def model_ready(name: str, state: State) -> dict[str, Any]:
    """Whether a guard scores."""
    state.guards.get(name)
    return {"name": name, "ready": True}


@get("/v2/health/live", tags=["KServe"])
async def live() -> dict[str, bool]:
    """Whether the process answers."""
    return {"live": True}


@get("/v2/health/ready", tags=["KServe"])
async def ready(state: State) -> dict[str, bool]:
    """Whether all guards score."""
    state.guards.check_ready()
    return {"ready": True}


ROUTES = [infer, predict_v1, server, model, model_ready, live, ready]
