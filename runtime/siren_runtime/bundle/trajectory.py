"""What guard.json says of how a trajectory becomes text."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from siren_runtime.errors import BundleError

from .heads import HeadSpec
from .types import Strict

TEMPLATE_FILE: Final = "chat_template.jinja"


class TrajectoryRules(Strict, frozen=True):
    """The chat template, a file of the bundle, what it may name, and how tools are written.

    `tokens` are special tokens by what templates call them, such as "bos_token".
    """

    template: Annotated[str, msgspec.Meta(min_length=1)]
    tokens: dict[str, str]
    tools: Literal["rich"]


def check_trajectory(
    task: str,
    rules: TrajectoryRules | None,
    text: tuple[str, str],
    heads: Mapping[str, HeadSpec],
    origin: str,
) -> None:
    """Refuse a bundle that is half of texts and half of trajectories.

    Args:
        text: the cleaner and the side of truncation.

    Raises:
        BundleError: it is.
    """
    of_trajectories = task == "trajectory"
    if (rules is not None) != of_trajectories:
        has = "no trajectory rules" if rules is None else "trajectory rules"
        raise BundleError(f"{origin}: the task is {task!r}, and there are {has}")
    expected = ("none", "head_tail") if of_trajectories else ("llm-siren-0.2", "right")
    if text != expected:
        raise BundleError(
            f"{origin}: text.cleaner and text.truncation_side of the task {task!r} are "
            f"{' and '.join(expected)}, found {' and '.join(text)}"
        )
    if not of_trajectories:
        return
    (name, head), *others = heads.items()
    if others or (head.pooling, head.activation) != ("residual_last", "logistic"):
        raise BundleError(
            f"{origin}: a bundle of trajectories has one head, logistic and of the last token, "
            f"found {', '.join(heads)}, {name!r} being {head.activation} and {head.pooling}"
        )
