"""How callers share a guard, and what each engine run tells those who count."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from siren_runtime.backends.base import Backend
from siren_runtime.bundle.arguments import real_number, whole_number
from siren_runtime.errors import InputError

# Measured with MiniLM in int8 and float32: one CPU thread takes as long for a token at 128 of them
# as at 512, and twice as long at 20; larger runs only pad more, and answer later.
_CPU_TOKEN_BUDGET = 128


@dataclass(frozen=True)
class Sharing:
    """How callers share a guard.

    Attributes:
        runs: engine runs at once, of one engine; each takes the threads that the guard was loaded
            with.
        gather: seconds that a window waits at most for others to share its run, while an engine
            is free. Texts that come while it is busy share the next run in any case.
        token_budget: tokens of a run, padding included, but for one window alone; None is 128 on
            a CPU, and elsewhere what runs best on the backend.
        max_calls: calls that may be under way, those being tokenized included.
        max_waiting_tokens: that may wait. A larger call is taken only when nothing waits, and one
            call counts for half of them at most, so that others find room beside it.
        max_streams: streams that may be open.
        max_stream_tokens: that each may hold, as far as the guard can; None is what it can.
    """

    runs: int = 1
    gather: float = 0.0
    token_budget: int | None = None
    max_calls: int = 512
    max_waiting_tokens: int = 32_768
    max_streams: int = 64
    max_stream_tokens: int | None = None

    def __post_init__(self) -> None:
        bounds = "max_calls", "max_waiting_tokens", "max_streams", "max_stream_tokens"
        for name in ("runs", "token_budget", *bounds):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(name, value, 1))
        gather = real_number("gather", self.gather)
        if not 0 <= gather <= 1:
            raise InputError(f"gather must be 0 to 1 second, found {gather}")

    def budget_of(self, backend: Backend) -> int:
        """The tokens of a run on a backend."""
        if self.token_budget is not None:
            return self.token_budget
        return _CPU_TOKEN_BUDGET if backend.name == "cpu" else backend.token_budget


@dataclass(frozen=True)
class Run:
    """One engine run, for those who count them.

    Attributes:
        kind: "score", or "stream" for pieces of streams.
        texts: windows or pieces in it.
        tokens: in it, padding left out; of streams, those that were computed.
        seconds: that it took.
        waited: seconds that each window or piece waited before it.
    """

    kind: str
    texts: int
    tokens: int
    seconds: float
    waited: Sequence[float] = field(repr=False)


DEFAULT_SHARING = Sharing()


def ignore(run: Run) -> None:
    """Count nothing."""
