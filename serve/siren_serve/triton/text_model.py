"""Whole texts in Triton's Python backend: what its batcher brings together is scored together."""

from typing import Any

from siren_runtime import Guard, ScoreResult
from siren_runtime.errors import InputError, SirenError
from siren_runtime.scoring.call import Text
from siren_serve.warming import warm

from .tensors import failed, guard_of, response, strings


class TritonPythonModel:
    """A guard with the inputs `text`, or `prompt` and/or `response`: BYTES [batch, 1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle of this version, and score a text."""
        self._guard: Guard = guard_of(args)
        warm(self._guard)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its texts' verdicts, or with the first error that one has."""
        asked: list[list[Text] | SirenError] = [_read(request) for request in requests]
        texts = [text for found in asked if isinstance(found, list) for text in found]
        results = iter(self._guard.score_each(texts))
        return [
            failed(found)
            if isinstance(found, SirenError)
            else _answer([next(results) for _ in found])
            for found in asked
        ]

    def finalize(self) -> None:
        """Free the engine."""
        self._guard.close()


def _read(request: Any) -> list[Text] | SirenError:
    try:
        given = {name: strings(request, name) for name in ("text", "prompt", "response")}
    except InputError as error:
        return error
    texts, prompts, responses = given.values()
    if (texts is None) == (prompts is None and responses is None):
        return InputError("a text is given by text, or by prompt and/or response")
    if texts is not None:
        return [*texts]
    count = len(prompts or responses or [])
    nothing: list[str | None] = [None] * count
    return [*zip(prompts or nothing, responses or nothing, strict=True)]


def _answer(results: list[ScoreResult | SirenError]) -> Any:
    verdicts = []
    for place, result in enumerate(results):
        if isinstance(result, SirenError):
            return failed(result, f"texts[{place}]: " if len(results) > 1 else "")
        verdicts.append(result)
    return response(verdicts, [len(verdicts), 1])
