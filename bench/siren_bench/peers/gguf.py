"""The same generative guard on a model's GGUF file: openvino-genai and llama.cpp."""

from collections.abc import Hashable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from siren_bench.engines.engine import Work
from siren_bench.subjects.real_models import GGUF_FILE
from siren_runtime.commands.origin import installed_versions
from siren_runtime.errors import install_hint

from .generation import Generation, OneAtATime
from .missing import PeerMissing

_CONTEXT = 4096  # tokens of a template, a text and what is generated


@dataclass(frozen=True)
class _OnGguf(OneAtATime):
    """Generation from a GGUF file, whose 4-bit weights stay as they are.

    Attributes:
        file: The GGUF file.
    """

    file: Path
    threads: int
    generation: Generation

    @property
    def work(self) -> Work:
        return self.generation.work("int4")


@dataclass(frozen=True)
class OpenVinoGenai(_OnGguf):
    """openvino-genai's LLMPipeline on the CPU."""

    @property
    def name(self) -> str:
        return f"openvino-genai int4, {self.generation}"

    @property
    def model_key(self) -> Hashable:
        return "openvino-genai", self.file, self.threads

    def versions(self) -> dict[str, str]:
        return installed_versions("openvino-genai", "openvino")

    def load(self) -> Any:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # every text is new to a guard, and not here
        settings = {"INFERENCE_NUM_THREADS": self.threads, "scheduler_config": scheduler}
        return openvino_genai.LLMPipeline(str(self.file), "CPU", **settings)

    def score(self, model: Any, text: str) -> None:
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.min_new_tokens = config.max_new_tokens = self.generation.new_tokens
        config.do_sample = config.apply_chat_template = False
        model.generate(self.generation.template + text, config)


@dataclass(frozen=True)
class LlamaCpp(_OnGguf):
    """llama.cpp by llama-cpp-python."""

    @property
    def name(self) -> str:
        return f"llama.cpp int4, {self.generation}"

    @property
    def model_key(self) -> Hashable:
        return "llama.cpp", self.file, self.threads

    def versions(self) -> dict[str, str]:
        return installed_versions("llama_cpp_python")

    def load(self) -> Any:
        from llama_cpp import Llama

        threads = {"n_threads": self.threads, "n_threads_batch": self.threads}
        return Llama(str(self.file), n_ctx=_CONTEXT, verbose=False, **threads)

    def score(self, model: Any, text: str) -> None:
        ids = model.tokenize((self.generation.template + text).encode(), add_bos=False)
        model.reset()
        for number in range(self.generation.new_tokens):
            model.eval(ids)
            if number + 1 < self.generation.new_tokens:
                ids = [model.sample(temp=0.0)]
            else:
                model.sample(temp=0.0)


_MODULES = {
    "openvino-genai": ("openvino_genai", install_hint("bench-peers")),
    "llama.cpp": ("llama_cpp", "pip install llama-cpp-python, which compiles it"),
}


def make_on_gguf(
    kind: str, backbone: Path, threads: int, generation: Generation
) -> OpenVinoGenai | LlamaCpp:
    """Make the engine of `openvino-genai` or `llama.cpp`.

    Raises:
        PeerMissing: it is not installed, or the model has no GGUF file.
    """
    module, install = _MODULES[kind]
    if find_spec(module) is None:
        raise PeerMissing(f"{kind} is not installed; {install}")
    file = backbone / GGUF_FILE
    if not file.exists():
        raise PeerMissing(f"{kind} is measured on a GGUF file, and {file} is not there")
    make = OpenVinoGenai if kind == "openvino-genai" else LlamaCpp
    return make(file, threads, generation)
