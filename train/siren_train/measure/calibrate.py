"""Thresholds and temperature from held-out scores, written into a bundle's manifest."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_runtime import Guard
from siren_runtime.bundle.cascade import Cascade, Exit
from siren_runtime.bundle.heads import Decision, LabelDecision
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.reader import Bundle
from siren_runtime.bundle.thresholds import (
    ResponseThresholds,
    SpanThreshold,
    Tier,
    check_tiers,
)
from siren_runtime.errors import InputError
from siren_runtime.scoring.engines import Engines
from siren_runtime.scoring.scorer import Scorer
from siren_runtime.text.reading import LLM_SIREN_LIMITS

from .evaluate import Scores
from .guard_json import write_manifest
from .metrics import mean_macro_f1, precision_recall
from .temperature import temperature_of

# At this temperature float32 scores still differ where the log-odds differ, up to 1,600.
FITTING_TEMPERATURE = 100.0
# As a guard reads texts unless it is told otherwise, but that every row counts, whatever it holds.
_LIMITS = replace(LLM_SIREN_LIMITS, long_text="windows")
_SMALLEST = 2.0**-24


def false_positive_threshold(scores: Scores, rate: float) -> float:
    """Return a threshold that flags as many rows as it can, but at most `rate` of the safe ones.

    Raises:
        InputError: safe rows that must not be flagged score 1, which every threshold flags.
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
    """Return a threshold that flags as many rows as it can at a precision of `target` or more.

    Raises:
        InputError: no threshold reaches it.
    """
    precision, _, thresholds = precision_recall(scores.harmful, scores.scores)
    reached = np.flatnonzero(precision >= target)
    if reached.size == 0:
        raise InputError(f"no threshold has precision {target}; the best is {precision.max():.3f}")
    return _just_below(scores, thresholds[reached[-1]])


def recall_threshold(scores: Scores, target: float) -> float:
    """Return a threshold that flags as few rows as it can at a recall of `target` or more."""
    _, recall, thresholds = precision_recall(scores.harmful, scores.scores)
    return _just_below(scores, thresholds[np.flatnonzero(recall >= target)[0]])


def _just_below(scores: Scores, score: float) -> float:
    """Return the middle between `score` and the next lower one, so that rounding loses no row."""
    lower = scores.scores[scores.scores < score]
    return float((score + lower.max(initial=0.0)) / 2)


def best_threshold(scores: Scores) -> float:
    """Return the threshold of the best macro-F1, averaged over data sets as `mean_macro_f1`."""
    return highest(scores, lambda found: mean_macro_f1(scores.harmful, found, scores.datasets))


def highest(scores: Scores, measure: Callable[[NDArray[np.bool_]], float]) -> float:
    """Return the threshold whose verdicts, bool [rows], have the highest measure.

    Of several that are equally good it is the middle one, which depends the least on single rows.
    """
    grid = np.linspace(0.01, 0.99, 99)
    measured = np.array([measure(scores.scores >= threshold) for threshold in grid])
    best = np.flatnonzero(measured >= measured.max() - 1e-12)
    return float(round(grid[best[len(best) // 2]], 2))


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


def find_threshold(scores: Scores, rule: str) -> float:
    """Return the threshold that a rule asks for.

    Args:
        rule: "best" (macro-F1), "fpr:RATE", "precision:TARGET", "recall:TARGET" or a number.

    Raises:
        InputError: the rule is none of these, or no threshold meets it.
    """
    kind, target = parse_rule(rule)
    if kind == "best":
        return best_threshold(scores)
    return _RULES[kind](scores, target) if kind else target


def parse_rule(rule: str) -> tuple[str, float]:
    """Return the kind of a rule and its number; of a number the kind is empty.

    Raises:
        InputError: it is no rule, as `find_threshold` takes them.
    """
    if rule == "best":
        return rule, 0.0
    kind, _, value = rule.rpartition(":")
    target = stated_threshold(value)
    if target is None or (kind not in _RULES and rule != value):
        raise InputError(
            f"{rule!r} is no rule for a threshold; expected best, fpr:RATE, precision:TARGET, "
            "recall:TARGET or a number, from 0 to 1"
        )
    return kind, target


_RULES = {
    "fpr": false_positive_threshold,
    "precision": precision_threshold,
    "recall": recall_threshold,
}


def stated_threshold(value: str) -> float | None:
    """Return the number from 0 to 1 that a rule is; None if it is none."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0.0 <= number <= 1.0 else None


def _log_odds(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-odds of scores, cut where float32 scores round to 1: at about 17."""
    clipped = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
    odds: NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return odds


def read_tiers(path: Path) -> list[Tier]:
    """Read a tier file: a JSON object of names and thresholds, such as {"block": 0.9}.

    Raises:
        InputError: it is not that, a name repeats, or a threshold is outside 0 to 1.
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
    """Return the tiers by falling threshold, checked as those of a manifest are.

    Args:
        origin: the file or option that they come from, for error messages.

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


def write_decided(bundle: Path, manifest: Manifest, head: str, decision: Decision) -> Manifest:
    """Write how a head decides into the bundle's guard.json, and return the new manifest.

    Bounds of exits and of orders are for the thresholds and the temperature that they were chosen
    with, so new ones drop them.

    Args:
        manifest: the bundle's.

    Raises:
        BundleError: the result would not be a valid manifest.
        InputError: guard.json cannot be written.
    """
    changed = manifest.deciding(head, decision)
    if changed.cutoffs != manifest.cutoffs or changed.temperature != manifest.temperature:
        changed = _without_bounds(changed)
    return write_manifest(bundle, changed)


def tempered(old: Decision, temperature: float) -> Decision:
    """How a head decides as before whose logits are divided by another temperature.

    Thresholds move with it, so that verdicts stay as they were; this holds for heads of two
    classes.
    """
    scale = temperature / old.temperature
    return msgspec.structs.replace(
        old,
        temperature=temperature,
        threshold=rescaled(old.threshold, scale),
        tiers=[Tier(t.name, rescaled(t.threshold, scale)) for t in old.tiers],
        spans=[SpanThreshold(s.tokens, rescaled(s.threshold, scale)) for s in old.spans],
        responses=old.responses
        and ResponseThresholds(
            rescaled(old.responses.threshold, scale),
            [Tier(t.name, rescaled(t.threshold, scale)) for t in old.responses.tiers],
            [SpanThreshold(s.tokens, rescaled(s.threshold, scale)) for s in old.responses.spans],
        ),
    )


def with_thresholds(
    old: Decision,
    threshold: float | None,
    tiers: Sequence[Tier] | None,
    responses: ResponseThresholds | None,
) -> Decision:
    """How a head decides with a new threshold, new tiers or new ones of texts with a response.

    A new threshold holds for texts with a response too where they get none of their own, and so do
    new tiers, which leave them the threshold they have.

    Args:
        threshold, tiers: None keeps them.
        responses: of texts with a response. Without tiers or spans they take those that `old` keeps
            for them.
    """
    changes: dict[str, object] = {}
    if threshold is not None:
        changes["threshold"] = threshold
    if tiers is not None:
        changes["tiers"] = list(tiers)
    if responses is not None or threshold is not None:
        changes["responses"] = responses and _completed(responses, old, tiers)
    elif tiers is not None and old.responses is not None:
        changes["responses"] = msgspec.structs.replace(old.responses, tiers=[*tiers])
    return msgspec.structs.replace(old, **changes)


def with_spans(
    old: Decision, spans: Sequence[SpanThreshold], of_responses: Sequence[SpanThreshold] | None
) -> Decision:
    """How a head decides with new thresholds of spans.

    Args:
        of_responses: of texts with a response, where these have thresholds of their own; None are
            those of other texts.
    """
    responses = old.responses
    if responses is not None:
        responses = msgspec.structs.replace(responses, spans=list(of_responses or []))
    return msgspec.structs.replace(old, spans=list(spans), responses=responses)


def _completed(
    responses: ResponseThresholds, kept: Decision, tiers: Sequence[Tier] | None
) -> ResponseThresholds:
    """Thresholds of responses, which take the tiers and spans that are kept where they have none.

    Args:
        tiers: new ones of other texts, with which none are kept.
    """
    old = kept.responses
    return ResponseThresholds(
        responses.threshold,
        responses.tiers or ((old or kept).tiers if tiers is None else []),
        responses.spans or (old.spans if old is not None else []),
    )


def _without_bounds(manifest: Manifest) -> Manifest:
    """The manifest with exits that decide nothing, and no bounds of orders."""
    manifest = msgspec.structs.replace(manifest, orders=None)
    if manifest.cascade is None:
        return manifest
    exits = [Exit(one.depth, one.head) for one in manifest.cascade.exits]
    return msgspec.structs.replace(manifest, cascade=Cascade(exits))


def rescaled(threshold: float, scale: float) -> float:
    """Return where a threshold lies once log-odds are divided by `scale`. 0 and 1 stay."""
    if not 0.0 < threshold < 1.0:
        return threshold
    log_odds = math.log(threshold) - math.log1p(-threshold)
    return 1 / (1 + math.exp(-log_odds / scale))
