"""What an answer has beside its choices: labels and numbers, which may go out, and texts."""

from typing import Any, Final

from siren_runtime.text.names import is_name

from .texts import Joined, texts_of

# What others have there may be text. Labels have a few words, the others numbers.
_LABELS: Final = {
    *("id", "object", "created", "model", "system_fingerprint", "service_tier", "provider"),
    "obfuscation",
}
NUMBERS: Final = {"usage", "timings", "prompt_filter_results"}
# Numbers and an upstream's own verdicts, whose strings are names, such as a tier or a category.
_NAMED: Final = {*NUMBERS, "vertex_ai_safety_ratings", "vertex_ai_safety_results"}
_LONGEST_LABEL = 128  # characters
_MOST_WORDS = 4


def without_texts(answer: dict[str, Any]) -> dict[str, Any]:
    """What goes out of an answer beside its choices: nothing that might be text."""
    labels = {k: v for k, v in answer.items() if k in _LABELS and _is_label(v)}
    return labels | {k: _numbers(v) for k, v in answer.items() if k in NUMBERS}


def _is_label(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_LABEL and len(value.split()) <= _MOST_WORDS
    return not isinstance(value, list | dict)


def _numbers(value: Any) -> Any:
    """A value without its texts."""
    if isinstance(value, list):
        return [_numbers(item) for item in value if not isinstance(item, str)]
    if not isinstance(value, dict):
        return None if isinstance(value, str) else value
    kept = {k: v for k, v in value.items() if not isinstance(v, str) and _is_label(k)}
    return {key: _numbers(item) for key, item in kept.items()}


class Extras:
    """The texts beside the choices, for who lets an answer out as it came. Chunks of a stream may
    say one over and over, which is read once.
    """

    def __init__(self, most: int | None = None) -> None:
        """Begin with no text; `most` as `Joined`."""
        self._last: dict[str, Any] = {}
        self._joined = Joined(most)

    def add(self, answer: dict[str, Any]) -> dict[int, str]:
        """Return what an answer, or a chunk of one, adds to what each stream reads, as `Joined`.

        Raises:
            RefusedRequest: as `texts_of`.
        """
        harmless = {"choices", *(k for k, v in without_texts(answer).items() if v == answer[k])}
        came = {k: v for k, v in answer.items() if k not in harmless and not _is_named(k, v)}
        new = {key: _new(value, self._last.get(key)) for key, value in came.items()}
        self._last |= came
        return self._joined.add({"beside": new})


def _new(value: Any, last: Any) -> Any:
    """A value without what the last one said in the same place."""
    if value == last:
        return None
    if isinstance(value, list) and isinstance(last, list):
        before = [*last, *[None] * (len(value) - len(last))]
        return [_new(*pair) for pair in zip(value, before, strict=False)]
    if isinstance(value, dict) and isinstance(last, dict):
        return {key: _new(item, last.get(key)) for key, item in value.items()}
    return value


def _is_named(key: str, value: Any) -> bool:
    return key in _NAMED and all(is_name(text) for _, text in texts_of(value, ("beside", key)))
