"""The temperature by which a head's logits are divided, so that its scores are probabilities.

A network that was trained until it fits is surer than it is right, and a score that is steep in
the features is moved most by what a quantized engine adds to them. A temperature mends both, and
changes no verdict at a threshold of one half.
"""

from collections.abc import Sequence

import numpy as np

from siren_export.heads.mlp import Dense
from siren_runtime.bundle.progress import Progress
from siren_train.measure.temperature import temperature_of
from siren_train.store.features import balanced_weights

from .search import Choice, CrossValidation, all_held_out_logits


def cross_validated_temperature(
    setup: CrossValidation,
    choice: Choice,
    members: int,
    progress: Progress,
) -> float:
    """Return the temperature of the least cross-entropy on rows that a head did not see.

    Args:
        members: of each fold's head, as the final one will have.
    """
    rows, logits = all_held_out_logits(setup, choice, members, progress, "temperature")
    features = setup.features
    weights = balanced_weights(features, choice.config.balance, rows)
    return temperature_of(logits, features.labels[rows], weights)


def fold_temperature(head: Sequence[Dense], temperature: float) -> tuple[Dense, ...]:
    """Return the head whose logits are those of `head` divided by the temperature."""
    *rest, last = head
    share = np.float32(1 / temperature)
    return (*rest, Dense(last.weight * share, last.bias * share))
