"""One guarded generation: pieces of text as they come, each with its score."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from siren_runtime.backends.verdicts import deciding
from siren_runtime.errors import BackendError, InputError
from siren_runtime.streaming.result import StreamResult
from siren_runtime.text.deadline import Deadline

from .engine import Engine, RowRun, Run
from .manifest import NEURONS_OUTPUT
from .watch import Watch

Finish = Literal["stop", "length", "harmful"]

# Tokens that are read in one engine run, in which onnxruntime-genai 0.18 lets no other thread of
# Python go on, and nobody looks at the deadline. More at once are hardly faster.
_TOKENS_AT_ONCE = 64


@dataclass(frozen=True)
class Settings:
    """What a generation goes by; its arguments, checked.

    Attributes:
        max_tokens, every, holdback: as `GuardedGenerator.generate`.
        by_rules: whether rules of the caller decide, and not the threshold.
        response_only: whether the prompt counts no more once there is a response.
        deadline: when it ends in any case.
    """

    max_tokens: int
    every: int
    holdback: int
    by_rules: bool
    response_only: bool
    deadline: Deadline


@dataclass(frozen=True)
class Piece:
    """The text of a token that was found safe to give out.

    Attributes:
        text: what the token completes; empty where later ones complete a character.
        token: its id.
        score: probability of harm of all up to this token.
    """

    text: str
    token: int
    score: float


class _Memory:
    """Raise a MemoryError of the block as a BackendError: what was read has no verdict."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MemoryError):
            raise BackendError(
                f"there is not enough memory to judge what was read ({_said(error)}); "
                "ask for fewer tokens, or for fewer generations at once"
            ) from error


_MEMORY = _Memory()


def read_tokens(
    run: Run | RowRun,
    watch: Watch,
    tokens: Sequence[int],
    what: str,
    deadline: Deadline,
    padding: int,
) -> None:
    """Let the engine read a prompt or a response to its end, and judge all so far.

    Args:
        what: the tokens are of, for errors.
        padding: the token with which the engine pads.

    Raises:
        BackendError, InterruptedCall: as `Generation`.
    """
    with _MEMORY:
        for start, stop in _parts(tokens, padding):
            deadline.check(f"after {start} of {len(tokens)} tokens of the {what}")
            run.append(tokens[start:stop])
            watch.add(run.output(NEURONS_OUTPUT)[0], tokens[start:stop])
        watch.read()
        watch.end()


def _parts(tokens: Sequence[int], padding: int) -> Iterator[tuple[int, int]]:
    """Where the parts begin and end in which tokens are read.

    Padding that ends them is read by itself: behind several tokens the engine chooses the next by
    the last that is no padding.
    """
    cuts = {0, *range(_TOKENS_AT_ONCE, len(tokens), _TOKENS_AT_ONCE), len(tokens)}
    if tokens[-1] == padding:
        cuts.add(len(tokens) - 1)
    return pairwise(sorted(cuts))


class Generation:
    """An iterator over the pieces of a response. `GuardedGenerator.generate` makes it.

    It ends before the piece that decides. After an error it gives no further text.

    Attributes:
        prompt: the verdict on the prompt, which is there before the first token is chosen.
        finish: None while it goes on; "stop" at the model's end of text, "length" after
            `max_tokens`, "harmful" where the prompt or the response was found so.
        prompt_tokens, tokens: how many the prompt has, and how many were generated.
        decided_at: the token of the response that was found harmful, from 1 on, of which `result`
            is; 0 is the prompt, None where nothing was.
    """

    def __init__(
        self,
        engine: Engine,
        run: Run | RowRun,
        watch: Watch,
        tokens: Sequence[int],
        text: str,
        settings: Settings,
    ) -> None:
        """Read the prompt, of which `tokens` are, and `text` is what it says, and judge it.

        Raises:
            InputError: too many of its words are cut by invisible characters.
            BackendError: the engine failed, or a value is not finite.
            InterruptedCall: the deadline passed, or the caller cancelled.
        """
        self._ends, self._watch, self._settings = engine.ends, watch, settings
        self._run: Run | RowRun | None = run
        self._pieces = engine.pieces()
        self._held: deque[Piece] = deque()  # judged, and not given out yet
        self._unjudged: list[tuple[str, int]] = []
        self._last: tuple[str, int] | None = None  # chosen, and not read by the engine yet
        self._error: BaseException | None = None
        self.finish: Finish | None = None
        self.prompt_tokens, self.tokens = len(tokens), 0
        self.decided_at: int | None = None
        self._judged = 0  # tokens of the response
        watch.tell(text)
        read_tokens(run, watch, tokens, "prompt", settings.deadline, engine.model.padding)
        self.prompt = watch.result
        decided = self.prompt.decisions if settings.by_rules else self.prompt.is_harmful
        if not decided and watch.is_unreadable:
            run.close()
            raise InputError(f"the prompt has no verdict: {_cut(watch.unknown)}; remove them")
        watch.begin_response(alone=settings.response_only)
        if decided:
            self.decided_at = 0
            self._end("harmful")

    def __iter__(self) -> "Generation":
        return self

    def __next__(self) -> Piece:
        """Return the next piece.

        Raises:
            BackendError: the engine failed, a value is not finite, there is not enough memory, it
                failed before, or a signal's handler or another thread closed it meanwhile.
            InterruptedCall: the deadline passed, or the caller cancelled.
        """
        if self._error is not None:
            raise BackendError(
                f"the generation failed before and has no verdict ({_said(self._error)})"
            )
        try:
            with _MEMORY:
                while len(self._held) <= (self._settings.holdback if self.finish is None else 0):
                    if self.finish is not None:
                        raise StopIteration
                    self._step()
                return self._held.popleft()
        except StopIteration:
            raise
        except BaseException as error:
            closed, self._error = self._error, self._error or error
            self._held.clear()
            self._end(None)
            if closed is not None and isinstance(error, Exception):
                raise closed from None
            raise

    @property
    def result(self) -> StreamResult:
        """The last verdict; it is made where it is asked for."""
        return self._watch.result

    @property
    def stopped_by(self) -> str | None:
        """What found harm: a rule, the threshold, or that of spans; None where nothing did."""
        if self.finish != "harmful":
            return None
        result = self.result
        if self._settings.by_rules:
            return result.decisions[0].rule
        span = deciding(result.spans)
        if span is not None:
            return f"threshold({span.threshold:g}) of a span of {span.tokens} tokens"
        return f"threshold({result.threshold:g})"

    def close(self) -> None:
        """Free the generation's memory; it gives no further text. Where some was left, an error
        says so.

        A signal's handler may close it amid a call for a piece, which ends with that piece or an
        error.
        """
        if self._error is None and (self.finish is None or self._held):
            self._error = BackendError("it was closed")
        self._end(self.finish)

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _step(self) -> None:
        """Choose the next token, and with that read and judge the one before."""
        settings, run = self._settings, self._run
        assert run is not None  # it is there until the end
        settings.deadline.check(f"after {self.tokens} of {settings.max_tokens} tokens")
        token = run.step()
        if self._last is not None:
            self._watch.add(run.output(NEURONS_OUTPUT)[0], self._last[1:])
            self._unjudged.append(self._last)
            self._last = None
        if token in self._ends:
            ending: Finish | None = "stop"
        elif self.tokens == settings.max_tokens:
            ending = "length"
        else:
            ending = None
            self.tokens += 1
            self._last = self._pieces.decode(token), token
        if self._unjudged and (ending or len(self._unjudged) >= settings.every):
            self._judge(ended=ending is not None)
        if ending and self.finish is None:
            self._end(ending)

    def _judge(self, *, ended: bool) -> None:
        """Judge what the engine has read, with which the response ends if `ended`; what comes
        before the token that decides is held for giving out.
        """
        scores = self._watch.read()
        if ended:
            self._watch.end()
        deciding = self._deciding()
        self._tell(deciding)
        if deciding is not None:
            self._watch.end_at(deciding)
            self.decided_at = self._judged + deciding + 1
        self._judged += len(self._unjudged)
        for (text, token), score in zip(self._unjudged[:deciding], scores[:deciding], strict=True):
            self._held.append(Piece(text, token, score))
        self._unjudged.clear()
        if deciding is not None:
            for _ in range(min(self._settings.holdback, len(self._held))):
                self._held.pop()
            self._end("harmful")

    def _tell(self, deciding: int | None) -> None:
        """Take in what the tokens just read say, up to the one that decides.

        Raises:
            BackendError: invisible characters cut too many words before that one.
        """
        watch = self._watch
        for number, (text, _) in enumerate(self._unjudged):
            watch.tell(text)
            if number == deciding:
                break
            if watch.is_unreadable:
                watch.end_at(number)
                raise BackendError(f"the response has no verdict: {_cut(watch.unknown)}")

    def _deciding(self) -> int | None:
        """Which of the tokens just read decides; None where none does."""
        watch = self._watch
        if not self._settings.by_rules:
            return watch.first_harmful()
        before = len(watch.scores) - len(self._unjudged)
        found = watch.decisions.since(before)
        if not found:
            return None
        return max(min(decision.token for decision in found) + watch.context - before, 0)

    def _end(self, finish: Finish | None) -> None:
        """Let the run go, which frees its cache."""
        self.finish = finish
        run, self._run = self._run, None  # at once, since another thread may end it too
        if run is not None:
            run.close()


def _cut(unknown: float) -> str:
    return f"invisible characters cut the words of {unknown:.0%} of the text"


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
