"""From a peer's name on the command line to its engine."""

import re
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Protocol, cast

from siren_bench.engines.engine import Engine, LlmSiren, TorchDtype
from siren_bench.subjects.subject import Subject
from siren_bench.subjects.texts import texts_of
from siren_export.families.registry import parse_config
from siren_export.sources.checkpoint import Checkpoint
from siren_runtime.errors import install_hint

from .genai import Genai, GenaiDtype, build_genai
from .generate import Generate
from .generation import Generation
from .gguf import make_on_gguf
from .missing import PeerMissing
from .openvino import OpenVinoDtype
from .openvino_setup import make_openvino
from .optimum import Optimum, export_with_optimum

PEERS = {
    "llm-siren-float32": "the head's official runtime",
    "llm-siren-bfloat16": "the same in bfloat16",
    "torch-compile-float32": "llm-siren with its backbone through torch.compile",
    "torch-compile-bfloat16": "the same in bfloat16",
    "openvino-float32": "our graph in OpenVINO",
    "openvino-bfloat16": "the same computed in bfloat16, on CPUs that have it",
    "openvino-int8": "the same with int8 weights, compressed by NNCF",
    "generate-float32-N[+T]": "a generative guard: N new tokens after a template of T tokens",
    "generate-bfloat16-N[+T]": "the same in bfloat16",
    "genai-float32-N[+T]": "the same in onnxruntime-genai",
    "genai-int4-N[+T]": "the same in onnxruntime-genai, 4-bit weights by its model builder",
    "openvino-genai-N[+T]": "the same in openvino-genai, from the model's 4-bit GGUF file",
    "llama.cpp-N[+T]": "the same in llama.cpp, from that file",
    "optimum-N[+T]": "the same exported to ONNX by Optimum, float32",
}

_FIXED = {name for name in PEERS if "-N[" not in name}
_KINDS = [name.removesuffix("-N[+T]") for name in PEERS if name not in _FIXED]
_GENERATIVE = re.compile(rf"({'|'.join(map(re.escape, _KINDS))})-(\d+)(?:\+(\d+))?")


class Model(Protocol):
    """What a peer is made from; a Workbench is one."""

    @property
    def subject(self) -> Subject:
        """The folders of the head and of its backbone."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The backbone."""

    @property
    def folder(self) -> Path:
        """Where a peer may write what it makes of the model."""

    def bundle(self, precision: str) -> Path:
        """Return the bundle of a precision, exported the first time."""


def peer_names(names: str) -> list[str]:
    """Split a list like "llm-siren-float32,generate-float32-4+200" and check each name.

    Raises:
        ValueError: a name is no peer's.
    """
    found = [name.strip() for name in names.split(",") if name.strip()]
    for name in found:
        match = _GENERATIVE.fullmatch(name)
        if name not in _FIXED and not (match and int(match[2]) > 0):
            raise ValueError(f"{name!r} is no peer; there are {', '.join(PEERS)}")
    return found


def is_generative(name: str) -> bool:
    """Whether a peer of that name answers in words, one text at a time."""
    return _GENERATIVE.fullmatch(name) is not None


def make_peer(name: str, model: Model, threads: int) -> Engine:
    """Make the engine of a peer that `peer_names` accepts.

    Raises:
        PeerMissing: it cannot run here or on this model.
    """
    generative = _GENERATIVE.fullmatch(name)
    if generative:
        kind, new_tokens, template_tokens = generative.groups(default="0")
        return _generative(model, threads, kind, int(new_tokens), int(template_tokens))
    kind, _, dtype = name.rpartition("-")
    if kind == "openvino":
        bundle = model.bundle("fp32")
        return make_openvino(bundle, cast("OpenVinoDtype", dtype), threads, model.folder)
    if find_spec("siren_guard") is None:
        raise PeerMissing(f"llm-siren is not installed; {install_hint('reference')}")
    compiled = kind == "torch-compile"
    if compiled and not (which("g++") or which("clang++")):
        raise PeerMissing("torch.compile needs a C++ compiler; install g++")
    return LlmSiren(model.subject.head, cast("TorchDtype", dtype), threads, compiled)


def _generative(
    model: Model, threads: int, kind: str, new_tokens: int, template_tokens: int
) -> Engine:
    backbone = parse_config(model.checkpoint.config, model.checkpoint.source)
    if not backbone.causal:
        raise PeerMissing(f"{backbone.model_type} is an encoder, which generates nothing")
    template = ""
    if template_tokens:
        tokenizer_json = model.checkpoint.tokenizer_json
        template = texts_of(tokenizer_json, [template_tokens])[template_tokens]
    generation = Generation(new_tokens, template_tokens, template)
    if kind == "optimum":
        exported, python = export_with_optimum(model.subject.backbone, model.folder)
        return Optimum(exported, python, threads, generation)
    if kind in ("openvino-genai", "llama.cpp"):
        return make_on_gguf(kind, model.subject.backbone, threads, generation)
    runtime, _, dtype = kind.partition("-")
    if runtime == "genai":
        built = build_genai(model.subject.backbone, model.folder, cast("GenaiDtype", dtype))
        return Genai(built, cast("GenaiDtype", dtype), threads, generation)
    return Generate(model.subject.backbone, cast("TorchDtype", dtype), threads, generation)
