"""What callers pass: numbers, truth values and choices, checked in one place."""

import operator
from collections.abc import Sequence
from contextlib import suppress
from typing import SupportsFloat, SupportsIndex

import numpy as np

from siren_runtime.errors import InputError


def whole_number(
    name: str, value: SupportsIndex, low: int, high: int | None = None, *, why: str = ""
) -> int:
    """Return a whole number as an int. Numpy's integers are such; True and False are not.

    Args:
        name: what errors call it.
        high: the greatest that it may be; None sets no limit.
        why: what sets the limits, for the error.

    Raises:
        InputError: it is not a whole number from `low` to `high`.
    """
    number: int | None = None
    if not isinstance(value, bool):
        with suppress(TypeError):
            number = operator.index(value)
    if number is None or number < low or (high is not None and number > high):
        most = "" if high is None else f" to {high}"
        reason = f", {why};" if why else ","
        raise InputError(f"{name} must be a whole number from {low}{most}{reason} found {value!r}")
    return number


def truth_value(name: str, value: bool) -> bool:
    """Return a truth value as a bool. Numpy's are such; numbers and strings are not.

    Raises:
        InputError: it is none; `name` is what the error calls it.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, found {value!r}")
    return bool(value)


def real_number(name: str, value: SupportsFloat) -> float:
    """Return a number as a float. Numpy's are such; True, False and strings are not.

    Raises:
        InputError: it is none, or too large; `name` is what the error calls it.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return value.__float__()
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be a number, found {value!r}") from None


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse what is none of the choices.

    Raises:
        InputError: it is none; `name` is what the error calls it.
    """
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, found {value!r}")
