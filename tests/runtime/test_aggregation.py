"""Aggregations other than the mean, chunk by chunk, against their definitions."""

import numpy as np
import pytest

from siren_runtime import InputError
from siren_runtime.streaming.aggregation import Ema, Window, aggregation_of


def folded(aggregation, neurons, chunks):
    """What the head reads at each token."""
    rows, pooled, start = np.zeros((0, neurons.shape[1]), np.float32), [], 0
    for length in chunks:
        kept, read = aggregation.fold(rows, neurons[start : start + length])
        rows, start = np.concatenate([rows, kept]), start + length
        pooled.append(read)
    return np.concatenate(pooled)


@pytest.fixture(scope="module")
def neurons():
    return np.random.default_rng(0).normal(3, 1, (40, 5)).astype(np.float32)


@pytest.mark.parametrize("chunks", [[1] * 40, [40], [3, 17, 1, 19]], ids=str)
@pytest.mark.parametrize("span", [1, 2, 7, 100])
def test_window_is_the_mean_over_the_last_tokens(neurons, span, chunks):
    expected = [neurons[max(0, i + 1 - span) : i + 1].mean(axis=0) for i in range(40)]
    np.testing.assert_allclose(folded(Window(span), neurons, chunks), expected, atol=1e-5)


@pytest.mark.parametrize("chunks", [[1] * 40, [40], [3, 17, 1, 19]], ids=str)
def test_ema_weighs_a_token_by_two_over_span_plus_one(neurons, chunks):
    expected = [neurons[0]]
    for row in neurons[1:]:
        expected.append(0.75 * expected[-1] + 0.25 * row)
    np.testing.assert_allclose(folded(Ema(7), neurons, chunks), expected, atol=1e-5)


def test_unknown_names_and_spans_are_refused():
    assert aggregation_of("mean", 64) is None
    with pytest.raises(InputError, match="mean, window, ema"):
        aggregation_of("median", 64)
    for span in (0, 1.5):
        with pytest.raises(InputError, match="span"):
            aggregation_of("ema", span)
