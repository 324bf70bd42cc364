"""The engines that are compared: how each is loaded and how it scores one text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Scorer = Callable[[str], float]


class Engine(Protocol):
    """Something that scores text. Small and picklable: it is loaded in a process of its own."""

    @property
    def name(self) -> str:
        """What tables call it."""

    def load(self) -> Scorer:
        """Load it and return the function that scores one text."""


@dataclass(frozen=True)
class SirenEdge:
    """A bundle in this project's runtime, on ONNX Runtime's CPU provider."""

    bundle: Path
    precision: str
    threads: int

    @property
    def name(self) -> str:
        return f"siren-edge {self.precision}"

    def load(self) -> Scorer:
        from siren_runtime import Guard

        guard = Guard.load(self.bundle, backend="cpu", threads=self.threads)
        return lambda text: guard.score(text).score


@dataclass(frozen=True)
class LlmSiren:
    """The head's official runtime, on PyTorch.

    Attributes:
        artifact: A head whose base_model.model_id is a local folder.
    """

    artifact: Path
    dtype: Literal["float32", "bfloat16"]
    threads: int

    @property
    def name(self) -> str:
        return f"llm-siren {self.dtype}"

    def load(self) -> Scorer:
        import torch
        import transformers
        from siren_guard import SirenGuard

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(self.threads)
        guard = SirenGuard.from_pretrained(
            str(self.artifact),
            device="cpu",
            dtype=getattr(torch, self.dtype),
            trust_remote_code=False,
        )
        return lambda text: guard.score(text).score
