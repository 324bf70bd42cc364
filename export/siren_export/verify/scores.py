"""Compare a bundle's scores with a reference's, in float32, over the reference's texts."""

import json
from collections.abc import Sequence

from siren_export.passes.table import Bound
from siren_runtime import Guard, ScoreResult
from siren_runtime.backends.readout import HeadText
from siren_runtime.bundle.heads import HeadSpec
from siren_runtime.bundle.progress import Progress
from siren_runtime.bundle.report import HeadVerification, Verification

from .reference import Reference
from .trajectories import Example


def verify_scores(
    guard: Guard, reference: Reference, bound: Bound, progress: Progress
) -> Verification:
    """Score the reference's texts and compare, of each head the score and every category.

    Args:
        guard: the bundle under test.
        reference: what to compare with.
        bound: of the differences that pass.
    """
    differences: dict[str, list[float]] = {name: [] for name in guard.heads}
    agreements = dict.fromkeys(guard.heads, 0)
    primary, specs = guard.heads[0], guard.manifests[0].heads
    scored = reference.scored
    for done, (text, expected) in enumerate(scored):
        heads = _score(guard, text).heads
        for name, head in heads.items():
            rows = reference.rows.get(name)
            row = [expected] if rows is None else rows[done]
            found = [head.score, *head.categories.values(), *head.orders][: len(row)]
            differences[name].append(_farthest(found, row))
            agreements[name] += head.is_harmful == _verdict(guard, name, specs[name], row)
        progress("verify", done + 1, len(scored))
    reports = {
        name: _report(differences[name], agreements[name], scored, bound) for name in guard.heads
    }
    own, further = reports[primary], {name: reports[name] for name in guard.heads[1:]}
    return Verification(
        status="passed" if all(report.passed for report in reports.values()) else "drifted",
        reference=reference.name,
        texts=len(scored),
        bound=bound.value,
        bounded=bound.of,
        max_difference=own.max_difference,
        mean_difference=own.mean_difference,
        verdict_agreement=own.verdict_agreement,
        worst_text=own.worst_text,
        further=further,
    )


def head_report(
    found: Sequence[float],
    expected: Sequence[float],
    threshold: float,
    scored: Sequence[tuple[str | Example, float]],
    bound: Bound,
) -> HeadVerification:
    """Compare a head's scores of the reference's texts with those that it should have."""
    pairs = [*zip(found, expected, strict=True)]
    agreements = sum((a >= threshold) == (b >= threshold) for a, b in pairs)
    return _report([abs(a - b) for a, b in pairs], agreements, scored, bound)


def _score(guard: Guard, text: str | Example) -> ScoreResult:
    return guard.score(text) if isinstance(text, str) else guard.score_trajectory(text)


def _verdict(guard: Guard, name: str, spec: HeadSpec, row: Sequence[float]) -> bool | None:
    """What the guard would decide by one of its heads, if the scores were those of `row`."""
    categories = dict(zip(spec.labels, row[1:], strict=True)) if spec.has_labels else {}
    text = HeadText(row[0], None, categories)
    return guard.judge.on_head(name, [text], None, unknown=0.0, has_response=False).is_harmful


def _farthest(found: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


def _report(
    differences: Sequence[float],
    agreements: int,
    scored: Sequence[tuple[str | Example, float]],
    bound: Bound,
) -> HeadVerification:
    worst = max(range(len(differences)), key=differences.__getitem__)
    mean, text = sum(differences) / len(differences), scored[worst][0]
    return HeadVerification(
        passed=(mean if bound.of == "mean" else differences[worst]) <= bound.value,
        max_difference=differences[worst],
        mean_difference=mean,
        verdict_agreement=agreements / len(differences),
        worst_text=(text if isinstance(text, str) else json.dumps(text["messages"]))[:80],
    )
