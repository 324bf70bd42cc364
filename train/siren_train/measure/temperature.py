"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599)."""

import math
from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from siren_runtime import Guard
from siren_runtime.bundle.heads import LabelDecision
from siren_runtime.bundle.reader import Bundle
from siren_runtime.scoring.engines import Engines
from siren_runtime.scoring.scorer import Scorer
from siren_runtime.text.reading import LLM_SIREN_LIMITS

from .decisions import with_spans
from .evaluate import Scores

# At this temperature float32 scores still differ where the log-odds differ, up to 1,600.
FITTING_TEMPERATURE = 100.0
# As a guard reads texts unless it is told otherwise, but that every row counts, whatever it holds.
_LIMITS = replace(LLM_SIREN_LIMITS, long_text="windows")
_LARGEST = 20.0  # and its inverse the smallest
_SMALLEST = 2.0**-24


def temperature_of(
    logits: NDArray[np.floating], labels: NDArray[np.int64], weights: NDArray[np.floating]
) -> float:
    """Return the temperature of the least cross-entropy, between 1/20 and 20.

    Args:
        logits: float32 [rows, classes].
        labels: int64 [rows].
        weights: float32 [rows], of the rows.
    """
    exact = logits.astype(np.float64)
    margins = exact - np.take_along_axis(exact, labels[:, None], axis=1)

    def loss(log_temperature: float) -> float:
        each = np.logaddexp.reduce(margins / math.exp(log_temperature), axis=1)
        return float(np.average(each, weights=weights))

    limit = math.log(_LARGEST)
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded")
    return math.exp(found.x)


def fit_temperature(scores: Scores) -> float:
    """Return the temperature of the least cross-entropy between 1/20 and 20.

    Args:
        scores: of a guard of two classes, at `FITTING_TEMPERATURE`.
    """
    log_odds = FITTING_TEMPERATURE * _log_odds(scores.scores)
    logits = np.stack([np.zeros_like(log_odds), log_odds], axis=1)
    return temperature_of(logits, scores.harmful.astype(np.int64), np.ones(len(logits)))


def tempered_guard(
    bundle: Bundle,
    engines: Engines,
    temperature: float | Mapping[str, float],
    head: str | None = None,
) -> Guard:
    """Return the guard that `bundle` would be at a temperature, on open engines of it.

    It reads long texts in windows, as guards do by default, and refuses none.
    No head has thresholds of spans: where another has some, the spans of one without do not count.

    Args:
        temperature: of a head of labels, that of each by name, in their order.
        head: the name of the head that has it; None is the primary one.
    """
    name = head or bundle.manifest.primary
    decision = bundle.manifest.decision(name)
    if isinstance(temperature, Mapping):
        labels = [LabelDecision(label, 0.5, own) for label, own in temperature.items()]
        decision = msgspec.structs.replace(decision, labels=labels)
    else:
        decision = msgspec.structs.replace(decision, temperature=temperature)
    manifest = bundle.manifest.deciding(name, decision)
    for one in manifest.heads:
        manifest = manifest.deciding(one, with_spans(manifest.decision(one), [], None))
    scorer = Scorer(replace(bundle, manifest=manifest), engines)
    return Guard([scorer], limits=_LIMITS)


def _log_odds(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-odds of scores, cut where float32 scores round to 1: at about 17."""
    clipped = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
    odds: NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return odds
