"""Guards as tests load them, and letters of which a guard is sure."""

import string
from typing import Any

from siren_runtime import Guard
from siren_runtime.text.reading import AS_LLM_SIREN


def load_guard(source: Any, **options: Any) -> Guard:
    """Load a guard that reads texts as llm-siren does: their beginning, whatever they hold.

    `options` are `Guard.load`'s.
    """
    return Guard.load(source, **options, **AS_LLM_SIREN)


def extreme_letters(guard: Guard) -> tuple[str, str]:
    """The letter that is safest and the one that is most harmful."""
    scores = {letter: guard.score(letter).score for letter in string.ascii_letters}
    safe, harmful = min(scores, key=scores.__getitem__), max(scores, key=scores.__getitem__)
    assert scores[safe] < 0.4
    assert scores[harmful] > 0.6
    return safe, harmful
