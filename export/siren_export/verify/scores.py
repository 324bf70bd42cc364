"""Compare a bundle's scores with a reference's, in float32, over the reference's texts."""

from siren_export.passes.table import Bound
from siren_runtime import Guard
from siren_runtime.bundle.progress import Progress
from siren_runtime.bundle.report import Verification

from .reference import Reference


def verify_scores(
    guard: Guard, reference: Reference, bound: Bound, progress: Progress
) -> Verification:
    """Score the reference's texts and compare.

    Args:
        guard: the bundle under test.
        reference: what to compare with.
        bound: of the differences that pass.
    """
    differences, agreements = [], 0
    scored = reference.scored
    for done, (text, expected) in enumerate(scored, start=1):
        result = guard.score(text)
        differences.append(abs(result.score - expected))
        agreements += result.is_harmful == (expected >= result.threshold)
        progress("verify", done, len(scored))
    worst = max(range(len(scored)), key=differences.__getitem__)
    mean = sum(differences) / len(scored)
    within = (mean if bound.of == "mean" else differences[worst]) <= bound.value
    return Verification(
        status="passed" if within else "drifted",
        reference=reference.name,
        texts=len(scored),
        bound=bound.value,
        bounded=bound.of,
        max_difference=differences[worst],
        mean_difference=mean,
        verdict_agreement=agreements / len(scored),
        worst_text=scored[worst][0][:80],
    )
