"""What an engine is, ours and llm-siren: how each is loaded, and how it scores.

Only the standard library is imported before an engine is loaded, so that loading it from a cold
start is timed with all of its imports.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

ComputeDtype = Literal["float32", "float16", "bfloat16", "float8", "int8", "int4"]
TorchDtype = Literal["float32", "bfloat16"]  # that a peer on PyTorch is measured in


@dataclass(frozen=True)
class Work:
    """What an engine does with a text: one pass and the head, or the generation of tokens.

    Attributes:
        dtype: Of the weights as stored and, but for int4 and float16, of the products.
        template_tokens: Tokens that a generative guard's prompt adds to the text.
        new_tokens: Tokens that it generates; 0 for a SIREN guard.
    """

    dtype: ComputeDtype
    template_tokens: int = 0
    new_tokens: int = 0


class Engine(Protocol):
    """Something that scores text. Small and picklable: it is loaded in a process of its own."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def model_key(self) -> Hashable:
        """Engines of equal keys score with one loaded model, in one process."""

    @property
    def work(self) -> Work:
        """What it computes for one text."""

    def versions(self) -> dict[str, str]:
        """Versions of the distributions that it is made of."""

    def load(self) -> Any:
        """Load the model and return it."""

    def score(self, model: Any, text: str) -> float | None:
        """Score one text; None where the engine answers in words."""

    def score_batch(self, model: Any, texts: Sequence[str]) -> list[float]:
        """Score texts handed over together.

        Raises:
            NotImplementedError: it takes one text at a time.
        """


class GuardEngine:
    """What engines have in common whose model is a guard, ours or llm-siren's."""

    def score(self, model: Any, text: str) -> float:
        """Score one text."""
        return float(model.score(text).score)

    def score_batch(self, model: Any, texts: Sequence[str]) -> list[float]:
        """Score texts handed over together."""
        return [result.score for result in model.score_batch(texts)]


@dataclass(frozen=True)
class SirenEdge(GuardEngine):
    """A bundle in this project's runtime.

    Attributes:
        token_budget: Tokens of a micro-batch at most, padding included; None for the runtime's.
        backend: What `Guard.load` calls it.
        label: What tables call the bundle; None for its precision.
        spans: Spans of a text are scored too where the bundle has thresholds of them, as a guard
            does that is loaded by default; else texts are read as llm-siren reads them.
    """

    bundle: Path
    precision: str
    threads: int
    token_budget: int | None = None
    backend: str = "cpu"
    label: str | None = None
    spans: bool = False

    @property
    def name(self) -> str:
        spans = " with spans" if self.spans else ""
        budget = "" if self.token_budget is None else f", {self.token_budget} tokens"
        backend = "" if self.backend == "cpu" else f" {self.backend}"
        return f"siren-edge{backend} {self.label or self.precision}{spans}{budget}"

    @property
    def model_key(self) -> Hashable:
        return self.bundle, self.threads, self.backend, self.spans

    @property
    def work(self) -> Work:
        return Work(_DTYPES[self.precision])

    def versions(self) -> dict[str, str]:
        library = self.backend
        if self.backend in ("cpu", "cuda"):
            library = "onnxruntime" if self.backend == "cpu" else "onnxruntime-gpu"
        from siren_runtime.commands.origin import installed_versions

        return installed_versions("siren-edge", library)

    def load(self) -> Any:
        from siren_runtime import Guard
        from siren_runtime.text.reading import AS_LLM_SIREN

        backend: Any = self.backend
        read = {**AS_LLM_SIREN, "spans": None if self.spans else False}
        return Guard.load(self.bundle, backend=backend, threads=self.threads, **read)

    def score_batch(self, model: Any, texts: Sequence[str]) -> list[float]:
        results = model.score_batch(texts, token_budget=self.token_budget)
        return [result.score for result in results]


_DTYPES: dict[str, ComputeDtype] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8": "float8",
    "int8": "int8",
    "int4": "int4",
}


@dataclass(frozen=True)
class LlmSiren(GuardEngine):
    """The head's official runtime, on PyTorch.

    Attributes:
        artifact: A head whose base_model.model_id is a local folder.
        compiled: Its backbone goes through torch.compile, with free shapes.
        device: "cpu" or "cuda".
    """

    artifact: Path
    dtype: TorchDtype
    threads: int
    compiled: bool = False
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"llm-siren {self.dtype}{', torch.compile' if self.compiled else ''}"

    @property
    def model_key(self) -> Hashable:
        return self

    @property
    def work(self) -> Work:
        return Work(self.dtype)

    def versions(self) -> dict[str, str]:
        from siren_runtime.commands.origin import installed_versions

        return installed_versions("llm-siren", "transformers", "torch")

    def load(self) -> Any:
        import torch
        import transformers
        from siren_guard import SirenGuard

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(self.threads)
        guard = SirenGuard.from_pretrained(
            str(self.artifact),
            device=self.device,
            dtype=getattr(torch, self.dtype),
            trust_remote_code=False,
        )
        if self.compiled:
            guard._backbone = torch.compile(guard._backbone, dynamic=True)
        return guard
