"""The guard as a validator of Guardrails AI: whole texts, and streams chunk by chunk."""

from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar
from dataclasses import InitVar, dataclass
from typing import Any

from guardrails.types import OnFailAction
from guardrails.validator_base import Validator, register_validator
from guardrails_ai.types import FailResult, PassResult, ValidationResult

from siren_runtime.scoring.result import ScoreResult
from siren_runtime.streaming.handles import Stream
from siren_runtime.streaming.result import StreamResult

from .guarding import Blocked, Guarding, pass_or_raise

_UNUSED = {
    "stride": "a chunk goes on at once",
    "max_streams": "nobody says that a stream was left",
    "runs": "each call is scored in its caller's thread",
}


@register_validator(name="siren/harm", data_type="string")
class SirenHarm(Validator):
    """Fails a text that is harmful, and raises where there is no verdict.

    A text is scored behind `metadata["prompt"]`, where there is one. Of a stream each chunk has
    the verdict on all text up to its end, and all chunks fail after the first that does.
    """

    def __init__(
        self,
        on_fail: OnFailAction | str | Callable[..., Any] | None = None,
        **settings: Any,
    ) -> None:
        """Open the guard.

        Args:
            on_fail: what Guardrails does with a harmful text; None raises its `ValidationError`.
            settings: the fields of `GuardSettings`, but for stride, max_streams and runs.

        Raises:
            SettingsError: one is not known, or cannot be used.
        """
        super().__init__(on_fail=on_fail, **settings)
        self._guarding = Guarding(settings, _UNUSED)
        self._key = f"siren stream {id(self)}"
        self._of_run: ContextVar[_Growing | None] = ContextVar(self._key, default=None)

    def _validate(self, value: Any, metadata: Mapping[str, Any]) -> ValidationResult:
        settings = self._guarding.settings
        result = self._guarding.guard.score(
            prompt=metadata.get("prompt"),
            response=value,
            threshold=settings.threshold,
            deadline=settings.timeout_s,
        )
        return _validated(value, _reason(result))

    def validate_stream(
        self,
        chunk: Any,
        metadata: dict[str, Any],
        *,
        context: Context | None = None,
        remainder: bool | None = False,
        **options: Any,
    ) -> ValidationResult:
        """Read a chunk behind those of its stream before it.

        Args:
            metadata: of the run. A `Guard` hands on what the chunk before it returned, and so
                the stream; an `AsyncGuard` does not, and has a `context` for each run.
            remainder: whether the text ends with the chunk.
        """
        growing = metadata.get(self._key) if context is None else context.run(self._of_run.get)
        if growing is None:
            prompt = metadata.get("prompt") or ""  # an answer, even to a prompt that is not known
            growing = _Growing(None, self._guarding.stream(prompt))
        timeout = self._guarding.settings.timeout_s
        result = _validated(chunk, growing.read(chunk, timeout, last=bool(remainder)))
        if context is None:
            result.metadata = {**metadata, self._key: growing}
        else:
            context.run(self._of_run.set, growing)
        return result


@dataclass
class _Growing:
    """A stream of the guard, which does not recover from harm.

    Guardrails writes the metadata of its history as JSON: of a dataclass, the fields.
    """

    reason: str | None
    stream: InitVar[Stream]

    def __post_init__(self, stream: Stream) -> None:
        self._stream = stream

    def read(self, chunk: str, timeout: float, *, last: bool) -> str | None:
        """Why the text up to the chunk's end may not pass, if it may not; found in so many
        seconds, or errors as `Stream.feed`.
        """
        if self.reason is None:
            self.reason = _reason(self._stream.feed(chunk, last=last, deadline=timeout))
        return self.reason


def _reason(result: ScoreResult | StreamResult) -> str | None:
    try:
        pass_or_raise(result)
    except Blocked as blocked:
        return str(blocked)
    return None


def _validated(text: str, reason: str | None) -> ValidationResult:
    if reason is None:
        return PassResult(validated_chunk=text)
    return FailResult(error_message=reason, fix_value="", validated_chunk=text)
