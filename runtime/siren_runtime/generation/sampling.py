"""How the tokens of a response are chosen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np

from siren_runtime.bundle.arguments import real_number, whole_number
from siren_runtime.errors import InputError

_LEAST, _MOST = -(2**31), 2**31 - 1  # whole numbers that the engine takes
_TINIEST, _LARGEST = map(float, (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; None is what the folder's genai_config.json says.

    Attributes:
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        top_p: tokens are drawn from the likeliest, up to this share, from 0 to 1.
        top_k: tokens are drawn from so many of the likeliest; 0 is from all.
        repetition_penalty: above 1, tokens that occurred are less likely; above 0.
        seed: of the draws.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check what is given; the engine would take most of what makes no sense.

        Raises:
            InputError: one is out of range.
        """
        self._take(_number, "temperature", "from 0", 0.0, _LARGEST)
        self._take(_number, "top_p", "from 0 to 1", 0.0, 1.0)
        self._take(_number, "repetition_penalty", "above 0", _TINIEST, _LARGEST)
        self._take(whole_number, "top_k", 0, _MOST)
        self._take(whole_number, "seed", _LEAST, _MOST)

    def _take(self, checked: Callable[..., Any], name: str, *limits: Any) -> None:
        """Make a field that is given Python's own number, which alone the engine takes."""
        if (value := getattr(self, name)) is not None:
            object.__setattr__(self, name, checked(name, value, *limits))

    def search(self) -> dict[str, Any]:
        """The search options of onnxruntime-genai."""
        options: dict[str, Any] = {
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "random_seed": self.seed,
        }
        if self.temperature is not None:
            options["do_sample"] = self.temperature > 0
            options["temperature"] = self.temperature or None
        return {name: value for name, value in options.items() if value is not None}


def checked_sampling(sampling: Sampling | None) -> Sampling:
    """What a caller passed, or what the folder says.

    Raises:
        InputError: it is something else.
    """
    if sampling is None:
        return Sampling()
    if not isinstance(sampling, Sampling):
        raise InputError(f"sampling must be a Sampling, found {type(sampling).__name__}")
    return sampling


def _number(name: str, value: SupportsFloat, what: str, least: float, most: float) -> float:
    """Return a number from `least` to `most`, which `what` says in words, as a float.

    Raises:
        InputError: it is none.
    """
    number = real_number(name, value)
    if not least <= number <= most:
        raise InputError(f"{name} must be a number {what}, found {value!r}")
    return number
