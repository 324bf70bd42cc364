"""Load a guard that reads texts as llm-siren does: their beginning, whatever they hold."""

from typing import Any

from siren_runtime import Guard
from siren_runtime.text.reading import AS_LLM_SIREN


def load_guard(source: Any, **options: Any) -> Guard:
    """Load a guard; `options` are `Guard.load`'s."""
    return Guard.load(source, **options, **AS_LLM_SIREN)
