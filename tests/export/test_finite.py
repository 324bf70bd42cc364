"""all_finite agrees with np.isfinite on every bit pattern and at every place."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from siren_export.sources.finite import all_finite


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_16_bit_pattern_is_judged_as_numpy_does(dtype: Any) -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    finite = np.isfinite(values.astype(np.float32))
    assert all_finite(values[finite])
    assert not any(all_finite(value) for value in values[~finite].reshape(-1, 1))


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, (1 << 18) - 1, 1 << 18, -1])
def test_a_float32_that_is_not_finite_is_found_at_every_place(value: float, place: int) -> None:
    values = np.full((3, 1 << 17), np.finfo(np.float32).max)
    assert all_finite(values)
    values.reshape(-1)[place] = value
    assert not all_finite(values)


def test_no_values_and_views_are_judged_too() -> None:
    assert all_finite(np.empty((0, 4), np.float32))
    columns = np.zeros((4, 6), np.float32)
    columns[2, 3] = np.nan
    assert all_finite(columns[:, ::2])
    assert not all_finite(columns[:, 1::2])
