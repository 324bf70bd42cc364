"""The table of precisions and targets: a row for each pair, or the reason why there is none."""

from itertools import product
from typing import get_args

import pytest

from siren_export.passes.table import TABLE, row_of
from siren_runtime.bundle.types import Precision, Target
from siren_runtime.errors import InputError

PAIRS = list(product(get_args(Target), get_args(Precision)))


def test_every_pair_has_a_row_or_a_reason():
    assert set(TABLE) == set(PAIRS)


@pytest.mark.parametrize(("target", "precision"), PAIRS)
def test_a_pair_without_a_row_is_refused_by_its_names(target, precision):
    if isinstance(TABLE[target, precision], str):
        with pytest.raises(InputError, match=f"precision {precision} is.*export with"):
            row_of(target, precision)
    else:
        assert row_of(target, precision) is TABLE[target, precision]


def refused():
    return {pair for pair, row in TABLE.items() if isinstance(row, str)}


def rows(**wanted):
    return {
        pair
        for pair, row in TABLE.items()
        if not isinstance(row, str) and all(getattr(row, k) == v for k, v in wanted.items())
    }


def test_ranges_are_measured_for_fixed_scales_and_moments_where_weights_are_fitted():
    tensorrt = ("tensorrt", "tensorrt10")
    assert rows(calibration="ranges") == {
        *((target, "fp8") for target in (*tensorrt, "tensorrt-rtx")),
        *((target, "int8") for target in tensorrt),
    }
    four_bits = {("onnxruntime", "int4"), ("tensorrt-rtx", "int4")}
    eight_bits = {("onnxruntime", "int8"), ("tensorrt-rtx", "int8")}
    assert rows(calibration="moments") == eight_bits | four_bits
    assert set(PAIRS) - four_bits - refused() == rows(four_bits=None)


def test_all_stream_but_bfloat16_which_numpy_does_not_have():
    assert {precision for _, precision in rows(streams=False)} == {"bf16"}


def test_single_matrices_stay_in_float32_where_the_rest_computes_in_it():
    assert rows(keeps_float=True) == {("onnxruntime", "int8"), ("onnxruntime", "int4")}
