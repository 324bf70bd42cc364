"""A generative guard of the same backbone: it writes its verdict with transformers' generate."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siren_bench.engines.engine import TorchDtype, Work
from siren_runtime.commands.origin import installed_versions

from .generation import Generation, OneAtATime
from .optimum_worker import generate


@dataclass(frozen=True)
class Generate(OneAtATime):
    """transformers' generate with a key/value cache, on PyTorch.

    Attributes:
        backbone: The folder of the language model.
        device: "cpu" or "cuda".
    """

    backbone: Path
    dtype: TorchDtype
    threads: int
    generation: Generation
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"transformers generate {self.dtype}, {self.generation}"

    @property
    def model_key(self) -> Hashable:
        return "generate", self.backbone, self.dtype, self.threads, self.device

    @property
    def work(self) -> Work:
        return self.generation.work(self.dtype)

    def versions(self) -> dict[str, str]:
        return installed_versions("transformers", "torch")

    def load(self) -> Any:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(self.threads)
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.backbone)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            self.backbone, dtype=getattr(torch, self.dtype)
        )
        return tokenizer, model.to(self.device).eval()

    def score(self, model: Any, text: str) -> None:
        tokenizer, language_model = model
        generate(
            language_model, tokenizer, self.generation.template, text, self.generation.new_tokens
        )
