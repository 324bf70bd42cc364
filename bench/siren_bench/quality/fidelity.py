"""Fidelity: what a precision does to scores, verdicts and quality on real text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from siren_bench.engines.engine import Engine
from siren_bench.engines.process import EngineProcess
from siren_bench.records.record import markdown_table
from siren_bench.records.samples import reason
from siren_bench.subjects.corpus import Row
from siren_bench.subjects.macro_f1 import macro_f1_by_dataset
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError

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


def thresholds_told(decision: Decision) -> dict[str, float]:
    """From which score on a head calls texts harmful: prompts, and texts with a response."""
    responses = decision.responses or decision
    return {"prompts": decision.threshold, "responses": responses.threshold}


def thresholds_of(rows: Sequence[Row], decision: Decision) -> np.ndarray:
    """From which score on each row is harmful, float64 [rows]."""
    told = thresholds_told(decision)
    return np.array([told["responses" if row.has_response else "prompts"] for row in rows])


def fidelity_entries(
    scores: Mapping[str, Sequence[float]],
    rows: Sequence[Row],
    decision: Decision,
    *,
    random: bool,
) -> list[dict[str, Any]]:
    """Describe each engine beside the first: `compare_scores`, macro-F1 of each data set, scores.

    Args:
        decision: Of the head, whose thresholds make the verdicts.
        random: The weights are random, so there is no macro-F1.
    """
    reference, thresholds = next(iter(scores.values())), thresholds_of(rows, decision)
    return [
        {
            **compare_scores(name, values, reference, thresholds),
            "macro_f1": {}
            if random
            else macro_f1_by_dataset(rows, (np.asarray(values) >= thresholds).tolist()),
            "scores": values,
        }
        for name, values in scores.items()
    ]


def recorded_scores(
    record: Mapping[str, Any],
    corpus: Sequence[str],
    rows: Sequence[Row],
    weights_sha256: str | None,
) -> dict[str, list[float]]:
    """Return the scores that a record of fidelity has of `rows`, of each engine by name.

    Args:
        corpus: The names of the files that the rows are of, in their order.
        weights_sha256: Of the head; records of before do not say whose scores they have.

    Raises:
        InputError: the record is of another benchmark, other rows or another head.
    """
    scores = {entry["engine"]: entry.get("scores", []) for entry in record["results"]}
    of_rows = record["settings"].get("corpus") == corpus
    of_rows &= {len(rows)} == {len(found) for found in scores.values()}
    if record["bench"] != "fidelity" or not of_rows:
        raise InputError(
            f"the record of {record['command']!r} has no scores of these {len(rows)} rows; give "
            "one of siren bench fidelity, and the files that its command names, in that order"
        )
    known = record["settings"].get("weights_sha256", {}).values()
    if known and weights_sha256 not in known:
        raise InputError(
            f"the record of {record['command']!r} is of a head with other weights "
            f"({', '.join(known)}) than {weights_sha256}"
        )
    return scores


def compare_scores(
    name: str,
    scores: Sequence[float],
    reference: Sequence[float],
    thresholds: float | np.ndarray,
) -> dict[str, Any]:
    """Compare an engine's scores with the reference's on the same texts.

    Args:
        thresholds: From which score on a text is harmful; one for all, or float64 [texts].

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
        "verdict_agreement": float(((ours >= thresholds) == (theirs >= thresholds)).mean()),
    }


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
