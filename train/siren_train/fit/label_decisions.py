"""Temperature and threshold of each label, from the rows that cross-validation left out."""

import numpy as np

from siren_runtime.bundle.heads import LabelDecision
from siren_runtime.bundle.progress import Progress
from siren_train.measure.calibrate_labels import best_label_threshold
from siren_train.measure.evaluate import Scores
from siren_train.measure.temperature import FITTING_TEMPERATURE, fit_temperature
from siren_train.store.features import DoubleArray

from .search import Choice, CrossValidation, all_held_out_logits


def decide_labels(
    setup: CrossValidation, choice: Choice, members: int, progress: Progress
) -> list[LabelDecision]:
    """Return how a head decides on each label: a temperature by which its probabilities are honest,
    and the threshold of its best F1, both on rows that a head of the choice did not see.

    Args:
        members: of each fold's head, as the final one will have.
    """
    features = setup.features
    rows, logits = all_held_out_logits(setup, choice, members, progress, "labels")
    names = np.array(features.names)[features.datasets[rows]]

    def scores(label: int, temperature: float) -> Scores:
        probabilities = _sigmoid(logits[:, label].astype(np.float64) / temperature)
        return Scores(probabilities, features.labels[rows, label] == 1, names, names)

    decisions = []
    for label, name in enumerate(features.classes):
        temperature = fit_temperature(scores(label, FITTING_TEMPERATURE))
        threshold = best_label_threshold(scores(label, temperature))
        decisions.append(LabelDecision(name, threshold, temperature))
    return decisions


def _sigmoid(x: DoubleArray) -> DoubleArray:
    probabilities: DoubleArray = 1 / (1 + np.exp(-x))
    return probabilities
