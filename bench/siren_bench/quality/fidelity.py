"""Fidelity: what a precision does to scores, verdicts and quality on real text."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from siren_bench.engines.engine import Engine
from siren_bench.engines.process import EngineProcess, reason
from siren_bench.records.record import markdown_table
from siren_bench.subjects.corpus import Row
from siren_runtime.bundle.progress import Progress, silent

_BATCH = 64  # texts in a call


def score_corpus(
    engines: Sequence[tuple[Engine, EngineProcess]],
    texts: Sequence[str],
    progress: Progress = silent,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Score all texts with every engine, in calls of 64.

    Returns:
        The scores of each engine by name, and for each engine that failed why.

    Raises:
        Exception: the first engine fails.
    """
    found: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    calls = [texts[k : k + _BATCH] for k in range(0, len(texts), _BATCH)]
    for number, (engine, process) in enumerate(engines):
        scores: list[float] = []
        try:
            for call in calls:
                scores += process.score_batches(engine, [call])[1]
                progress("scoring", number * len(texts) + len(scores), len(engines) * len(texts))
        except Exception as error:  # whatever a peer's libraries raise
            if number == 0:
                raise
            failed[engine.name] = reason(error)
        else:
            found[engine.name] = scores
    return found, failed


def fidelity_entries(
    scores: Mapping[str, Sequence[float]], rows: Sequence[Row], threshold: float, *, random: bool
) -> list[dict[str, Any]]:
    """Describe each engine beside the first: `compare_scores`, macro-F1 of each data set, scores.

    Args:
        random: The weights are random, so there is no macro-F1.
    """
    reference = next(iter(scores.values()))
    return [
        {
            **compare_scores(name, values, reference, threshold),
            "macro_f1": {} if random else macro_f1_by_dataset(rows, values, threshold),
            "scores": values,
        }
        for name, values in scores.items()
    ]


def compare_scores(
    name: str, scores: Sequence[float], reference: Sequence[float], threshold: float
) -> dict[str, Any]:
    """Compare an engine's scores with the reference's on the same texts.

    Returns:
        The largest, mean and 99th percentile of |difference|, and the share of equal verdicts.
    """
    ours, theirs = np.asarray(scores), np.asarray(reference)
    differences = np.abs(ours - theirs)
    return {
        "engine": name,
        "texts": len(ours),
        "max_difference": float(differences.max()),
        "p99_difference": float(np.quantile(differences, 0.99)),
        "mean_difference": float(differences.mean()),
        "verdict_agreement": float(((ours >= threshold) == (theirs >= threshold)).mean()),
    }


def macro_f1_by_dataset(
    rows: Sequence[Row], scores: Sequence[float], threshold: float
) -> dict[str, float]:
    """Return the macro-F1 of each data set, over its labelled rows; sets without any are left out.

    Args:
        rows: In any order.
    """
    found = {}
    pairs = sorted(zip(rows, scores, strict=True), key=lambda pair: pair[0].dataset)
    for dataset, group in groupby(pairs, key=lambda pair: pair[0].dataset):
        labelled = [(r.label, s >= threshold) for r, s in group if r.label is not None]
        if labelled:
            labels, verdicts = map(np.asarray, zip(*labelled, strict=True))
            found[dataset] = macro_f1(labels == 1, verdicts)
    return found


def macro_f1(labels: np.ndarray, verdicts: np.ndarray) -> float:
    """Return the mean of the F1 of both classes; a class that nobody names counts 0.

    Args:
        labels, verdicts: bool [rows], true for harmful.
    """
    scores = []
    for harmful in (True, False):
        hits = np.sum((labels == harmful) & (verdicts == harmful))
        named = np.sum(labels == harmful) + np.sum(verdicts == harmful)
        scores.append(2 * hits / named if named else 0.0)
    return float(np.mean(scores))


def fidelity_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out differences, agreement and macro-F1 of each engine."""
    datasets = list(results[0]["macro_f1"])
    header = ["engine", "max", "p99", "mean difference", "equal verdicts"]
    header += [f"F1 {name}" for name in datasets] + (["F1 mean"] if datasets else [])
    rows = []
    for entry in results:
        keys = ("max_difference", "p99_difference", "mean_difference")
        row = [entry["engine"], *(f"{entry[key]:.1e}" for key in keys)]
        row.append(f"{entry['verdict_agreement']:.2%}")
        values = [entry["macro_f1"][name] for name in datasets]
        row += [f"{value:.4f}" for value in values]
        rows.append([*row, f"{np.mean(values):.4f}"] if values else row)
    return markdown_table(header, rows)
