"""Temperature and threshold of each label of a head, from held-out rows."""

from collections.abc import Mapping

from siren_runtime.bundle.heads import LabelDecision
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.errors import InputError

from .decisions import rescaled
from .evaluate import Scores
from .metrics import harm_f1
from .temperature import fit_temperature
from .threshold_rules import find_threshold, highest, stated_threshold


def labels_of(manifest: Manifest, head: str) -> list[LabelDecision]:
    """How a head decides on each of its labels; none where it has classes."""
    spec, decision = manifest.heads[head], manifest.decision(head)
    if spec.activation == "softmax":
        return []
    return decision.labels or [LabelDecision(n, decision.threshold) for n in spec.labels]


def scores_of_labels(scores: Scores, head: str) -> dict[str, Scores]:
    """Each label of a head as if it were harm, on the rows whose labels are known.

    Raises:
        InputError: no row names a label.
    """
    found = next((one for one in scores.heads if one.head == head), None)
    if found is None:
        raise InputError(
            f"no category of the rows names a label of the head {head!r}; a row has its labels in "
            "the category column, joined by +"
        )
    return {
        name: Scores(
            found.probabilities[:, place],
            found.truth[:, place],
            scores.datasets[found.rows],
            scores.categories[found.rows],
        )
        for place, name in enumerate(found.names)
    }


def fit_label_temperatures(scores: Scores, head: str) -> dict[str, float]:
    """The temperature of each label, as `fit_temperature` finds it; `scores` are as it takes."""
    of_labels = scores_of_labels(scores, head)
    return {
        name: fit_temperature(of_label) if of_label.harmful.any() else 1.0
        for name, of_label in of_labels.items()
    }


def find_label_thresholds(scores: Scores, head: str, rule: str) -> dict[str, float]:
    """The threshold that a rule asks for of each label, by the rows that are of it and the rest;
    the best is that of `best_label_threshold`.

    Raises:
        InputError: as `find_threshold`; or no row is of a label, so that none can be chosen.
    """
    found = {}
    for name, of_label in scores_of_labels(scores, head).items():
        if not of_label.harmful.any() and stated_threshold(rule) is None:
            raise InputError(f"no row is of the label {name!r}, so there is nothing to choose by")
        best = rule == "best"
        found[name] = best_label_threshold(of_label) if best else find_threshold(of_label, rule)
    return found


def best_label_threshold(scores: Scores) -> float:
    """Return the threshold of a label's best F1 over all rows, as reports have it. Over data sets
    it has no mean: of most of them no row is of the label, and there nothing can be found.
    """
    return highest(scores, lambda found: harm_f1(scores.harmful, found))


def recalibrated(
    old: list[LabelDecision],
    thresholds: Mapping[str, float],
    temperatures: Mapping[str, float],
) -> list[LabelDecision]:
    """The labels with what is given by name; a threshold that is kept moves with its temperature,
    so that verdicts stay as they were.
    """
    new = []
    for label in old:
        temperature = temperatures.get(label.name, label.temperature)
        kept = rescaled(label.threshold, temperature / label.temperature)
        new.append(LabelDecision(label.name, thresholds.get(label.name, kept), temperature))
    return new
