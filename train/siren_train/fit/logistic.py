"""Logistic regressions of which rows that are held out choose one."""

import warnings
from typing import Any

import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from siren_train.store.features import DoubleArray, FloatArray

_MOST_STEPS = 1000


def fit_logistic(
    inputs: FloatArray | DoubleArray,
    labels: npt.NDArray[Any],
    weights: FloatArray | DoubleArray,
    inverse_penalty: float,
) -> tuple[DoubleArray, float]:
    """Fit one by L-BFGS, in 1,000 steps at most; one that stops there is a candidate like others.

    Args:
        inputs: [rows, features], standardized.
        labels: [rows], of two classes, 1 for harm.
        weights: [rows], of the rows' losses.
        inverse_penalty: of L2, scikit-learn's C.

    Returns:
        Weights float64 [features], and the bias.
    """
    model = LogisticRegression(C=inverse_penalty, max_iter=_MOST_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs, labels, weights)
    weight: DoubleArray = model.coef_[0].astype(float)
    return weight, float(model.intercept_[0])
