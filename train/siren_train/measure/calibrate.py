"""Thresholds and temperature from held-out scores, written into a bundle's manifest."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from siren_runtime import Guard
from siren_runtime.backends.base import Backend
from siren_runtime.bundle.manifest import MANIFEST_FILE, Manifest, decode, encode
from siren_runtime.bundle.reader import Bundle, load_bundle
from siren_runtime.bundle.thresholds import Tier, check_tiers
from siren_runtime.errors import InputError
from siren_runtime.scoring.engines import Engines
from siren_runtime.scoring.scorer import Scorer
from siren_train.store.files import write_atomically

from .evaluate import Scores
from .metrics import macro_f1, precision_recall

FITTING_TEMPERATURE = 100.0  # here float32 scores tell log-odds of up to 1,600 apart
_MAX_LOG_TEMPERATURE = math.log(20.0)
_SMALLEST = 2.0**-24


def false_positive_threshold(scores: Scores, rate: float) -> float:
    """Return a threshold for the most flagged rows with at most `rate` of the safe ones.

    Raises:
        InputError: even the highest score of a safe row would have to pass, but it is 1.
    """
    safe = np.sort(scores.scores[~scores.harmful])[::-1]
    allowed = int((np.arange(1, len(safe) + 1) / len(safe) <= rate).sum())
    if allowed >= len(safe):
        return 0.0
    if safe[allowed] >= 1.0:
        raise InputError(
            f"no threshold flags at most {rate:.2%} of the {len(safe)} safe rows: "
            f"{int((safe >= 1.0).sum())} of them score 1; scale the temperature, or allow more"
        )
    higher = scores.scores[scores.scores > safe[allowed]]
    return float((safe[allowed] + higher.min(initial=1.0)) / 2)


def precision_threshold(scores: Scores, target: float) -> float:
    """Return a threshold for the most flagged rows at a precision of at least `target`.

    Raises:
        InputError: no threshold reaches it.
    """
    precision, _, thresholds = precision_recall(scores.harmful, scores.scores)
    reached = np.flatnonzero(precision >= target)
    if reached.size == 0:
        raise InputError(f"no threshold has precision {target}; the best is {precision.max():.3f}")
    return _just_below(scores, thresholds[reached[-1]])


def recall_threshold(scores: Scores, target: float) -> float:
    """Return a threshold for the fewest flagged rows at a recall of at least `target`."""
    _, recall, thresholds = precision_recall(scores.harmful, scores.scores)
    return _just_below(scores, thresholds[np.flatnonzero(recall >= target)[0]])


def _just_below(scores: Scores, score: float) -> float:
    """Halfway down to the next score, so that rounding cannot cost the row of this one."""
    lower = scores.scores[scores.scores < score]
    return float((score + lower.max(initial=0.0)) / 2)


def best_threshold(scores: Scores) -> float:
    """Return the threshold of the best macro-F1, per data set then averaged.

    Among equals it is the middle one, which is the least bound to the rows it was chosen on.
    """
    grid = np.linspace(0.01, 0.99, 99)
    means = []
    for threshold in grid:
        verdicts = (scores.scores >= threshold).astype(np.int64)
        means.append(
            np.mean(
                [
                    macro_f1(scores.harmful[rows].astype(np.int64), verdicts[rows])
                    for rows in (scores.datasets == name for name in np.unique(scores.datasets))
                ]
            )
        )
    best = np.flatnonzero(np.array(means) >= max(means) - 1e-12)
    return float(round(grid[best[len(best) // 2]], 2))


def fit_temperature(scores: Scores) -> float:
    """Return the temperature of the least cross-entropy, from 1/20 to 20.

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599).

    Args:
        scores: of a two-class guard at `FITTING_TEMPERATURE`.
    """
    log_odds = FITTING_TEMPERATURE * _log_odds(scores.scores)
    signs = np.where(scores.harmful, 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -signs * log_odds / math.exp(log_temperature)).mean())

    bounds = (-_MAX_LOG_TEMPERATURE, _MAX_LOG_TEMPERATURE)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def tempered_guard(bundle: Bundle, engine: Backend, temperature: float) -> Guard:
    """Return the guard that `bundle` would be at `temperature`, on its open engine."""
    manifest = msgspec.structs.replace(bundle.manifest, temperature=temperature)
    return Guard([Scorer(replace(bundle, manifest=manifest), Engines(engine))])


def choose_threshold(scores: Scores, rule: str) -> float:
    """Return the threshold that a rule asks for.

    Args:
        rule: "best" (macro-F1), "fpr:RATE", "precision:TARGET", "recall:TARGET" or a number.

    Raises:
        InputError: the rule is none of these, or no threshold meets it.
    """
    if rule == "best":
        return best_threshold(scores)
    kind, _, value = rule.rpartition(":")
    target = _parse_share(value)
    if target is not None and rule == value:
        return target
    if target is not None and kind in _RULES:
        return _RULES[kind](scores, target)
    raise InputError(
        f"{rule!r} is no rule for a threshold; expected best, fpr:RATE, precision:TARGET, "
        "recall:TARGET or a number, from 0 to 1"
    )


_RULES = {
    "fpr": false_positive_threshold,
    "precision": precision_threshold,
    "recall": recall_threshold,
}


def _parse_share(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0.0 <= number <= 1.0 else None


def _log_odds(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Float32 scores round to 1 from log-odds of 17 on, so those end there."""
    clipped = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
    odds: NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return odds


def read_tiers(path: Path) -> list[Tier]:
    """Read a tier file: a JSON object of names and thresholds, such as {"block": 0.9}.

    Raises:
        InputError: it is not that, names repeat, or a threshold is outside 0 to 1.
        BundleError: two thresholds are equal.
    """
    try:
        data = path.read_bytes()
        named = msgspec.json.decode(data, type=dict[str, float])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: expected an object of tier names and thresholds: {error}"
        ) from None
    names = [name for name, _ in json.loads(data, object_pairs_hook=list)]
    if len(names) > len(named):
        raise InputError(f"{path}: names a tier twice, found {', '.join(names)}")
    return make_tiers(named, str(path))


def make_tiers(named: Mapping[str, float], origin: str) -> list[Tier]:
    """Return the tiers by falling threshold, checked as a manifest's.

    Raises:
        InputError: there is none, one has no name, or a threshold is outside 0 to 1.
        BundleError: two thresholds are equal.
    """
    if not named:
        raise InputError(f"{origin}: no tiers")
    for name, threshold in named.items():
        if not name or not 0.0 <= threshold <= 1.0:
            raise InputError(
                f"{origin}: tier {name!r} is {threshold}; expected a name, and a threshold from 0 "
                "to 1"
            )
    tiers = [Tier(*item) for item in sorted(named.items(), key=lambda item: -item[1])]
    check_tiers(tiers, origin)
    return tiers


def write_calibration(
    bundle: Path,
    *,
    threshold: float | None = None,
    tiers: Sequence[Tier] | None = None,
    temperature: float | None = None,
) -> Manifest:
    """Write what is given into the bundle's guard.json, and return the manifest.

    A threshold that is kept moves with a new temperature of a two-class head, so that verdicts
    stay as they were.

    Raises:
        BundleError: the bundle is damaged, or the result would not be a valid manifest.
    """
    manifest = load_bundle(bundle).manifest
    changes: dict[str, object] = {}
    if temperature is not None:
        scale = temperature / manifest.temperature
        changes["temperature"] = temperature
        changes["threshold"] = _moved(manifest.threshold, scale)
        changes["tiers"] = [Tier(t.name, _moved(t.threshold, scale)) for t in manifest.tiers]
    if threshold is not None:
        changes["threshold"] = threshold
    if tiers is not None:
        changes["tiers"] = list(tiers)
    data = encode(msgspec.structs.replace(manifest, **changes))
    manifest = decode(data, str(bundle / MANIFEST_FILE))
    write_atomically(bundle / MANIFEST_FILE, data)
    return manifest


def _moved(threshold: float, scale: float) -> float:
    """Where a threshold comes to lie when log-odds are divided by `scale`; 0 and 1 stay."""
    if not 0.0 < threshold < 1.0:
        return threshold
    return float(1 / (1 + np.exp(-_log_odds(np.array(threshold)) / scale)))
