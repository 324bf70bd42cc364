"""What a call of a guard is given, and how errors of texts come out of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from siren_runtime.bundle.arguments import whole_number
from siren_runtime.bundle.heads import HeadSpec
from siren_runtime.errors import InputError, SirenError
from siren_runtime.text.deadline import Deadline
from siren_runtime.text.passage import Passage, make_passage
from siren_runtime.text.reading import Limits
from siren_runtime.text.trajectory import Trajectory, trajectory_of

_T = TypeVar("_T")


@dataclass(frozen=True)
class Call:
    """What one call of a guard asks for; its arguments, checked. A threshold of None is the guard's
    own, by what the text is.
    """

    threshold: float | None
    features: bool
    limits: Limits
    token_budget: int | None
    deadline: Deadline
    order: int | None = None  # of polynomial heads

    def __post_init__(self) -> None:
        if self.token_budget is not None:
            budget = whole_number("token_budget", self.token_budget, 1)
            object.__setattr__(self, "token_budget", budget)


def checked_order(order: int | None, heads: Mapping[str, HeadSpec]) -> int | None:
    """An order that a head of a guard has; None is the highest of each.

    Raises:
        InputError: none has it.
    """
    if order is None:
        return None
    most = max(head.orders for head in heads.values())
    if most == 0:
        raise InputError("order is of polynomial heads, and the guard has none")
    return whole_number("order", order, 1, most, why="the orders that the head has")


# What is scored by itself.
Given = Passage | Trajectory

# A text, or a prompt and its response, either of which may be None.
Text = str | tuple[str | None, str | None]


def passages_of(texts: Iterable[Text], method: str, call: Call) -> list[Passage | SirenError]:
    """Each text as a passage, or why it is none.

    Raises:
        InputError: `texts` is one string, or no list; `method` is what was called.
        InterruptedCall: the call's deadline passed, or it was cancelled.
    """
    if isinstance(texts, str):
        raise InputError(f"{method} takes a list of texts, found one str; use score")
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping):
        raise InputError(f"{method} takes a list of texts, found {type(texts).__name__}")
    passages = []
    for text in texts:
        call.deadline.check("while the texts were read")
        passages.append(_passage(text, call.limits))
    return passages


def _passage(text: Text, limits: Limits) -> Passage | SirenError:
    try:
        if isinstance(text, tuple) and len(text) == 2:
            return make_passage(None, *text, max_bytes=limits.max_bytes)
        if not isinstance(text, str):
            raise InputError(f"a text must be a str, found {type(text).__name__}")
        return make_passage(text, max_bytes=limits.max_bytes)
    except InputError as error:
        return error


def trajectories_of(given: Iterable[Any], method: str) -> list[Trajectory | SirenError]:
    """Each as a trajectory, or why it is none.

    Raises:
        InputError: `given` is one string or one object, or no list; `method` is what was called.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise InputError(f"{method} takes a list of trajectories, found {type(given).__name__}")
    return [_trajectory(one) for one in given]


def _trajectory(given: Any) -> Trajectory | SirenError:
    try:
        return trajectory_of(given)
    except InputError as error:
        return error


def raised(values: Sequence[_T | SirenError], what: str = "texts") -> list[_T]:
    """Return the values of texts, or raise the first error among them with the text's place."""
    good = []
    for index, value in enumerate(values):
        if isinstance(value, SirenError):
            raise type(value)(f"{what}[{index}]: {value}") from value
        good.append(value)
    return good
