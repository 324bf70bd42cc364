"""Selection and layer weights follow the recipe."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from siren_train.fit.probe import Probe
from siren_train.fit.selection import select_channels, select_layers
from siren_train.measure.metrics import MacroF1

magnitudes = arrays(np.float32, st.integers(1, 50), elements=st.floats(0, 1e3, width=32))


def probes(*scores: float) -> list[Probe]:
    return [
        Probe(layer, np.array([3, 0, 1], np.float32), 0.1, MacroF1(score, {"data": score}))
        for layer, score in enumerate(scores)
    ]


@given(magnitudes, st.floats(0.01, 1.0))
def test_the_fewest_channels_that_hold_the_share_are_selected(
    weights: np.ndarray, share: float
) -> None:
    selected = select_channels(weights, share)
    assert (np.diff(selected) > 0).all()
    total = weights.sum(dtype=np.float64)
    if total == 0:
        assert selected.tolist() == [0]
        return
    held = weights[selected].sum(dtype=np.float64)
    assert held >= share * total * (1 - 1e-6)
    assert weights[selected].min() > 0
    one_fewer = held - weights[selected].min()
    assert len(selected) == 1 or one_fewer < share * total * (1 + 1e-6)


def test_layer_weights_are_min_max_normalized_with_a_floor() -> None:
    layers = select_layers(probes(0.5, 0.7, 0.52, 0.6), share=0.6)
    assert [layer.weight for layer in layers] == pytest.approx([0.1, 1.0, 0.1, 0.5])
    assert [layer.channels.tolist() for layer in layers] == [[0]] * 4


def test_uniform_and_equal_layers_weigh_one() -> None:
    uniform = select_layers(probes(0.5, 0.7), share=0.9, weighting="uniform")
    equal = select_layers(probes(0.6, 0.6), share=0.9)
    assert [layer.weight for layer in (*uniform, *equal)] == [1.0] * 4
    assert uniform[0].channels.tolist() == [0, 2]
