"""Rules that decide over the scores of a stream, token by token.

A rule is a fold over (position, score), so that tokens that are taken back take their decisions
with them. It is in force at a token or not; a decision is made where it comes into force.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

from siren_runtime.bundle.arguments import whole_number
from siren_runtime.bundle.thresholds import checked_threshold
from siren_runtime.errors import InputError


@dataclass(frozen=True)
class Decision:
    """A rule came into force.

    Attributes:
        rule: its description, such as "patience(3 of 5, 0.5)".
        token: the position of the token where it did, from 0, among those that count. Where
            each feed reads all of the text anew, its tokens have one score, that of the last of
            them, which is the token named.
        score: the score there.
    """

    rule: str
    token: int
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"rule": self.rule, "token": self.token, "score": self.score}


class Rule(Protocol):
    """A decision rule. States are immutable.

    One that uses scores only by which of some thresholds they reach may say so by an attribute
    `thresholds`, of these: exits may decide under it.
    """

    def start(self) -> Any:
        """Return the state before the first token."""

    def step(self, state: Any, position: int, score: float) -> tuple[Any, bool]:
        """Return the state after a token, and whether the rule is in force there."""


@dataclass(frozen=True)
class Schedule:
    """In force while the score is at least the threshold of the token's position.

    `steps` are (position, threshold), ascending from position 0: each holds from its position on.
    A soft start is a high first threshold: the first tokens' scores vary most.
    """

    steps: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        try:
            steps = tuple((place, threshold) for place, threshold in self.steps)
        except (TypeError, ValueError):
            raise InputError(
                "a schedule's steps are pairs of a position and a threshold, found "
                f"{self.steps!r}; write Schedule(((0, 0.9), (32, 0.7)))"
            ) from None
        object.__setattr__(self, "steps", steps)  # a list could change later
        positions = [whole_number("a position of schedule", place, 0) for place, _ in steps]
        if not positions or positions[0] != 0 or positions != sorted(set(positions)):
            raise InputError(
                f"a schedule's positions must ascend from 0, found {positions}; "
                "write Schedule(((0, 0.9), (32, 0.7)))"
            )
        for _, threshold in steps:
            checked_threshold(threshold, "a threshold of schedule")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Those of all positions."""
        return tuple(threshold for _, threshold in self.steps)

    def __str__(self) -> str:
        return f"schedule({', '.join(f'{p}: {t:g}' for p, t in self.steps)})"

    def start(self) -> None:
        """Return no state."""

    def step(self, state: None, position: int, score: float) -> tuple[None, bool]:
        """Compare with the last threshold whose position is reached."""
        threshold = next(t for p, t in reversed(self.steps) if p <= position)
        return None, score >= threshold


@dataclass(frozen=True)
class Patience:
    """In force while at least `k` of the last `n` scores are at least `threshold`."""

    k: int
    n: int
    threshold: float

    def __post_init__(self) -> None:
        for name in ("k", "n"):  # numpy's integers have 64 bits, too few for hits
            number = whole_number(f"{name} of patience", getattr(self, name), 0)
            object.__setattr__(self, name, number)
        if not 1 <= self.k <= self.n:
            raise InputError(f"patience needs 1 <= k <= n, found k={self.k}, n={self.n}")
        checked_threshold(self.threshold, "a threshold of patience")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The threshold."""
        return (self.threshold,)

    def __str__(self) -> str:
        return f"patience({self.k} of {self.n}, {self.threshold:g})"

    def start(self) -> int:
        """Return the hits among the last `n` tokens as bits: none."""
        return 0

    def step(self, state: int, position: int, score: float) -> tuple[int, bool]:
        """Shift the token's hit in."""
        hits = state << 1 | (score >= self.threshold)
        if hits >> self.n:  # not a mask of n bits, which may be many
            hits ^= 1 << self.n
        return hits, hits.bit_count() >= self.k


@dataclass(frozen=True)
class Hysteresis:
    """In force from the first score of at least `on` until one below `off`."""

    on: float
    off: float

    def __post_init__(self) -> None:
        checked_threshold(self.on, "a threshold of hysteresis")
        checked_threshold(self.off, "a threshold of hysteresis")
        if self.off > self.on:
            raise InputError(f"hysteresis needs off <= on, found on={self.on}, off={self.off}")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Both."""
        return self.off, self.on

    def __str__(self) -> str:
        return f"hysteresis(on {self.on:g}, off {self.off:g})"

    def start(self) -> bool:
        """Return not in force."""
        return False

    def step(self, state: bool, position: int, score: float) -> tuple[bool, bool]:
        """Compare with the threshold that can change the state."""
        state = score >= (self.off if state else self.on)
        return state, state


@dataclass(frozen=True)
class AtTier:
    """In force while the score is at least the threshold of a tier of calibration.

    `Guard.tiers` makes one of each of the bundle's tiers.
    """

    name: str
    threshold: float

    def __post_init__(self) -> None:
        checked_threshold(self.threshold, "a threshold of tier")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The tier's."""
        return (self.threshold,)

    def __str__(self) -> str:
        return f"tier({self.name}, {self.threshold:g})"

    def start(self) -> None:
        """Return no state."""

    def step(self, state: None, position: int, score: float) -> tuple[None, bool]:
        """Compare with the tier's threshold."""
        return None, score >= self.threshold


def checked_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return decision rules as a tuple.

    Raises:
        InputError: they are no list, or one of them is no rule.
    """
    if isinstance(rules, str | bytes) or not isinstance(rules, Iterable):
        raise InputError(
            f"rules must be a list of rules, found {rules!r}; write [Patience(3, 5, 0.9)]"
        )
    listed = tuple(rules)
    for rule in listed:
        is_rule = all(callable(getattr(rule, name, None)) for name in ("start", "step"))
        if isinstance(rule, type) or not is_rule:
            raise InputError(
                f"rules are Schedule, Patience, Hysteresis, AtTier or what has their start and "
                f"step; found {rule!r}"
            )
    return listed


@dataclass(frozen=True)
class Cutoffs:
    """The thresholds on whose sides exits leave texts, and so what they may decide of a stream.

    Attributes:
        threshold: the guard's.
        lowest, highest: of all, tiers among them. What an exit decides lies below the one, or
            reaches the other.
    """

    threshold: float
    lowest: float
    highest: float

    def suffice(self, threshold: float | None, rules: Sequence[Rule]) -> bool:
        """Whether they tell all that a stream's threshold (None: the guard's) and rules ask."""
        told = [getattr(rule, "thresholds", None) for rule in rules]
        return threshold in (None, self.threshold) and all(
            thresholds is not None and all(self.lowest <= t <= self.highest for t in thresholds)
            for thresholds in told
        )


_Verdicts = tuple[tuple[Any, Decision | None], ...]  # of each rule: state, decision in force


class Decisions:
    """Rules folded over the scores of a stream's tokens; what is taken back takes its decisions
    with it.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._start: _Verdicts = tuple((rule.start(), None) for rule in self.rules)
        self.begin()

    def begin(self) -> None:
        """Forget everything."""
        self._base, self._base_count = self._start, 0
        self._context = 0
        self._scores: list[float] = []
        self._verdicts: list[_Verdicts] = []

    def update(self, scores: Sequence[float], context: int, *, together: int | None = None) -> None:
        """Take over the scores of all tokens held, of which the first `context` do not count.

        Only what changed since the last time is folded anew. The tokens from number `together` on
        were scored as one, so that what is decided at any of them is decided at the last.
        """
        if not self.rules:
            return
        kept = _equal_from_the_front(self._scores, scores) if context == self._context else 0
        del self._verdicts[kept:], self._scores[kept:]
        self._context = context
        self.extend(scores[kept:], together=together)

    def extend(self, scores: Sequence[float], *, together: int | None = None) -> None:
        """Take over the scores of further tokens; the others stand.

        Args:
            together: as `update`.
        """
        if not self.rules:
            return
        first, context = len(self._scores), self._context
        self._scores += scores
        last, shift = len(self._scores) - 1, self._base_count - context
        for index, score in enumerate(scores, first):
            if index < context:
                self._verdicts.append(self._start)
                continue
            before = self._base if index == context else self._verdicts[-1]
            named = index if together is None or index < together else last
            self._verdicts.append(self._step(before, index + shift, named + shift, score))

    def since(self, first: int) -> list[Decision]:
        """Return the decisions in force at a token from `first` on, or at the last if none is."""
        verdicts = self._verdicts[min(first, len(self._verdicts) - 1) :]
        found = [decision for token in verdicts for _, decision in token if decision is not None]
        return list(dict.fromkeys(found))

    def slide(self, count: int) -> None:
        """Forget the tokens held; what the rules made of the first `count` stays."""
        if self.rules and count > self._context:
            self._base_count += count - self._context
            self._base = self._verdicts[count - 1]
        self._context, self._scores, self._verdicts = 0, [], []

    def _step(self, before: _Verdicts, position: int, named: int, score: float) -> _Verdicts:
        after = []
        for rule, (state, decision) in zip(self.rules, before, strict=True):
            state, in_force = rule.step(state, position, score)
            if not in_force:
                decision = None
            elif decision is None:
                decision = Decision(str(rule), named, score)
            after.append((state, decision))
        return tuple(after)


def _equal_from_the_front(old: list[float], new: Sequence[float]) -> int:
    """How many scores stand as before."""
    if new[: len(old)] == old:
        return len(old)
    return next(i for i, (a, b) in enumerate(zip_longest(old, new)) if a != b)
