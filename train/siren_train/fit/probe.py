"""An L1 linear probe per layer: which channels of a layer tell the classes apart, and how well.

The solver is scikit-learn's liblinear because it was the fastest: on 11,341 rows of 384 channels
it fits the five strengths in 7 s of one core. Its saga takes 10 s, and proximal gradient descent
(FISTA) in torch 19 s, all to the same macro-F1. liblinear draws its order of rows from a generator
that is global to its process, so layers may be fitted side by side in processes, not in threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression

from siren_runtime.errors import InputError
from siren_train.measure.metrics import MacroF1, macro_f1_by_dataset
from siren_train.store.features import (
    DoubleArray,
    FeatureSet,
    FloatArray,
    Standardizer,
    balanced_weights,
)

from .settings import STRENGTHS

# scikit-learn 1.8, which needs Python 3.11, renamed the argument.
_L1 = (
    {"l1_ratio": 1.0}
    if tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 8)
    else {"penalty": "l1"}
)
# On 20,837 rows of 576 channels, of SmolLM2's block 12, liblinear's own 1e-4 took 78 s at the
# strength 0.003 and had 0.787 on validation rows with 451 channels; this takes 3.1 s and has 0.782
# with 474.
_TOLERANCE = 1e-2
_INTERCEPT_SCALING = 10.0  # liblinear penalizes the intercept too; this makes that negligible


@dataclass(frozen=True, eq=False)
class Probe:
    """The best probe of one layer.

    Attributes:
        layer: 0-based block.
        weights: float32 [channels], the |weight| of each standardized channel, the largest over
            classes.
        strength: of the L1 penalty, as a share of the smallest that makes every weight zero.
        validation: macro-F1 of its verdicts on the validation rows.
    """

    layer: int
    weights: FloatArray
    strength: float
    validation: MacroF1


def fit_probe(
    train: FeatureSet,
    validation: FeatureSet,
    layer: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    balance: float = 0.5,
) -> Probe:
    """Fit `layer` at each strength, and return the best by macro-F1 on `validation`.

    Of equally good strengths the largest wins, whose weights are the sparsest.

    Args:
        strengths: of the L1 penalty, as shares of the smallest that makes every weight zero.
        balance: as in balanced_weights.

    Raises:
        InputError: a pooled neuron is not finite.
    """
    standardizer = Standardizer.fit(train.pooled[:, layer])
    inputs = standardizer.apply(train.pooled[:, layer]).astype(np.float64)
    held_out = standardizer.apply(validation.pooled[:, layer])
    if not (np.isfinite(inputs).all() and np.isfinite(held_out).all()):
        raise InputError(f"layer {layer}: a feature is not finite; extract again")
    row_weights = balanced_weights(train, balance)
    targets, exclusive = train.targets, train.labels.ndim == 1
    silent = _silencing_penalty(inputs, targets, row_weights)
    best: Probe | None = None
    for strength in sorted(strengths, reverse=True):
        weights, bias = _fit(inputs, targets, exclusive, row_weights, strength * silent)
        score = macro_f1_by_dataset(
            validation.labels,
            validation.decided(held_out @ weights.T + bias, validation.labels),
            validation.datasets,
            validation.names,
        )
        if best is None or score.mean > best.validation.mean:
            largest = np.abs(weights).max(axis=0).astype(np.float32)
            best = Probe(layer, largest, strength, score)
    if best is None:
        raise ValueError("a probe needs at least one strength")
    return best


def _fit(
    inputs: DoubleArray,
    targets: DoubleArray,
    exclusive: bool,
    row_weights: FloatArray,
    penalty: float,
) -> tuple[DoubleArray, DoubleArray]:
    """Return weights [classes, channels] and bias [classes]: each class against the rest.

    Two classes that exclude one another are fitted once, because the second is the mirror image of
    the first.
    """
    mirrored = exclusive and targets.shape[1] == 2
    positive = targets.T[1:] if mirrored else targets.T
    models = [
        LogisticRegression(
            **_L1,
            C=1 / penalty,
            solver="liblinear",
            intercept_scaling=_INTERCEPT_SCALING,
            tol=_TOLERANCE,
            random_state=0,
        ).fit(inputs, target == 1, row_weights)
        for target in positive
    ]
    weights = np.concatenate([model.coef_ for model in models])
    bias = np.concatenate([model.intercept_ for model in models])
    if mirrored:
        return np.concatenate([-weights, weights]), np.concatenate([-bias, bias])
    return weights, bias


def _silencing_penalty(inputs: DoubleArray, targets: DoubleArray, row_weights: FloatArray) -> float:
    """Return the smallest penalty that makes every weight zero, of a loss summed over rows."""
    residual = targets - np.average(targets, axis=0, weights=row_weights)
    return float(np.abs(inputs.T @ (row_weights[:, None] * residual)).max())
