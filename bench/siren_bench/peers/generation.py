"""What a generative guard does with a text, on whichever runtime it generates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from siren_bench.engines.engine import ComputeDtype, Work


@dataclass(frozen=True)
class Generation:
    """Greedy decoding of an exact number of tokens, after a template and the text.

    Attributes:
        new_tokens: Tokens generated, neither more nor fewer.
        template_tokens: Tokens of the template.
        template: A text before the one that is judged, as a guard's policy prompt.
    """

    new_tokens: int
    template_tokens: int = 0
    template: str = field(default="", repr=False)

    def __str__(self) -> str:
        plural = "s" if self.new_tokens > 1 else ""
        template = f", template of {self.template_tokens}" if self.template_tokens else ""
        return f"{self.new_tokens} new token{plural}{template}"

    def work(self, dtype: ComputeDtype) -> Work:
        """What it computes for one text."""
        return Work(dtype, self.template_tokens, self.new_tokens)


class OneAtATime:
    """What engines have in common that generate: they take no batch."""

    def score_batch(self, model: Any, texts: Sequence[str]) -> NoReturn:
        """Refuse."""
        raise NotImplementedError("a generative guard takes one text at a time")
