"""A generative guard of the same backbone: it writes its verdict with transformers' generate."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..engines import Work
from ..record import installed_versions


@dataclass(frozen=True)
class Generate:
    """Greedy decoding of an exact number of tokens with a key/value cache, on PyTorch.

    Attributes:
        backbone: The folder of the language model.
        new_tokens: Tokens generated, neither more nor fewer.
        template: A text before the one that is judged, as a guard's policy prompt.
        template_tokens: Its tokens.
        device: "cpu" or "cuda".
    """

    backbone: Path
    dtype: Literal["float32", "bfloat16"]
    threads: int
    new_tokens: int
    template_tokens: int = 0
    template: str = field(default="", repr=False)
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"transformers generate {self.dtype}, {generation(self)}"

    @property
    def model_key(self) -> Hashable:
        return "generate", self.backbone, self.dtype, self.threads, self.device

    @property
    def work(self) -> Work:
        return Work(self.dtype, self.template_tokens, self.new_tokens)

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
        import torch

        tokenizer, language_model = model
        template = tokenizer(self.template)["input_ids"] if self.template else []
        ids = torch.tensor([template + tokenizer(text)["input_ids"]], device=self.device)
        with torch.inference_mode():
            output = language_model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=self.new_tokens,
                max_new_tokens=self.new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            ).cpu()  # which waits until a GPU is done
        if output.shape[1] != ids.shape[1] + self.new_tokens:
            raise RuntimeError(f"generate made {output.shape[1] - ids.shape[1]} tokens")

    def score_batch(self, model: Any, texts: Sequence[str]) -> list[float]:
        raise NotImplementedError(f"{self.name} takes one text at a time")


def generation(engine: Any) -> str:
    """Say how much a generative guard writes, and after which template."""
    plural = "s" if engine.new_tokens > 1 else ""
    template = f", template of {engine.template_tokens}" if engine.template_tokens else ""
    return f"{engine.new_tokens} new token{plural}{template}"
