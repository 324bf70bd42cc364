"""Which channels of which layers a head reads, and with what weight: the SIREN aggregation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from siren_export.heads.selected import LayerSelection
from siren_train.store.features import FloatArray

from .probe import Probe
from .settings import LayerWeighting

WEIGHT_FLOOR = 0.1


def select_layers(
    probes: Sequence[Probe], *, share: float, weighting: LayerWeighting = "adaptive"
) -> tuple[LayerSelection, ...]:
    """Select in each probed layer the channels that hold `share` of its total |weight|.

    Args:
        weighting: "adaptive" weighs a layer by its probe's macro-F1 on the validation rows,
            min-max normalized over the layers, and 0.1 at least. "uniform" gives every layer 1.
    """
    scores = np.array([probe.validation.mean for probe in probes])
    spread = scores.max() - scores.min()
    adaptive = np.maximum((scores - scores.min()) / spread if spread else 1.0, WEIGHT_FLOOR)
    weights = adaptive if weighting == "adaptive" else np.ones(len(probes))
    return tuple(
        LayerSelection(probe.layer, select_channels(probe.weights, share), float(weight))
        for probe, weight in zip(probes, np.broadcast_to(weights, len(probes)), strict=True)
    )


def strongest(
    probes: Sequence[Probe], count: int, weighting: LayerWeighting = "adaptive"
) -> tuple[LayerSelection, ...]:
    """Select the `count` channels of the largest |weight| in their layers' probes.

    A probe's weights count as shares of their total, times the layer's weight, which is as of
    `select_layers`. Layers of which none is selected are left out.
    """
    layers = select_layers(probes, share=1.0, weighting=weighting)
    totals = {probe.layer: max(float(probe.weights.sum()), 1e-12) for probe in probes}
    weights = {probe.layer: probe.weights for probe in probes}
    strengths = [
        one.weight * weights[one.layer][one.channels] / totals[one.layer] for one in layers
    ]
    order = np.argsort(-np.concatenate(strengths), kind="stable")[:count]
    taken = np.zeros(sum(map(len, strengths)), np.bool_)
    taken[order] = True
    of_layers = np.split(taken, np.cumsum([len(one) for one in strengths])[:-1])
    return tuple(
        LayerSelection(one.layer, one.channels[own], one.weight)
        for one, own in zip(layers, of_layers, strict=True)
        if own.any()
    )


def select_channels(weights: FloatArray, share: float) -> np.ndarray:
    """Return the fewest channels whose `weights` sum to `share` of the total, int64, ascending.

    Channels of weight 0 are left out. If all are 0, the first channel stands for the layer.

    Args:
        weights: float32 [channels], none negative.
    """
    order = np.argsort(-weights, kind="stable")
    cumulative = np.cumsum(weights[order], dtype=np.float64)
    if cumulative[-1] == 0:
        return np.array([0], np.int64)
    count = int(np.searchsorted(cumulative, share * cumulative[-1] * (1 - 1e-9))) + 1
    return np.sort(order[: min(count, np.count_nonzero(weights))]).astype(np.int64)


def gather(
    pooled: NDArray[np.floating],
    selection: Sequence[LayerSelection],
    rows: NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Return the features that a head reads, float32 [rows, n_features].

    They are the pooled neurons of the selected channels, each times its layer's weight.

    Args:
        pooled: [rows, layers, channels], of texts, or what engines differ by on these.
        rows: bool [rows], a mask of those to take; None takes all.
    """
    taken = slice(None) if rows is None else rows
    return np.concatenate(
        [
            pooled[taken, layer.layer][:, layer.channels].astype(np.float32)
            * np.float32(layer.weight)
            for layer in selection
        ],
        axis=1,
    )


def gains(selection: Sequence[LayerSelection]) -> FloatArray:
    """Return float32 [n_features]: the layer weight of each feature."""
    weights = np.array([layer.weight for layer in selection], np.float32)
    return np.repeat(weights, [layer.channels.size for layer in selection])
