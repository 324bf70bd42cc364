"""What a calibration found, for people."""

from pathlib import Path
from typing import TYPE_CHECKING

from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.thresholds import ResponseThresholds
from siren_runtime.commands.console import report, write_lines

if TYPE_CHECKING:
    from siren_train.measure.evaluate import Scores


def print_decision(decision: Decision, scores: "Scores", split: str) -> None:
    """Print what the threshold and each tier give on the rows of `split` that they are for."""
    from siren_train.measure.calibrate_responses import risks
    from siren_train.measure.metrics import binary_metrics

    reached = risks(scores, decision)
    parts: list[tuple[str, Decision | ResponseThresholds, Scores, Scores]]
    parts = [("", decision, scores, reached)]
    if decision.responses is not None:
        taken = scores.has_response
        parts = [
            ("", decision, scores.of(~taken), reached.of(~taken)),
            ("responses, ", decision.responses, scores.of(taken), reached.of(taken)),
        ]
    for what, decides, rows, of_tiers in parts:
        for span in decides.spans:
            write_lines(f"{what}spans of {span.tokens} tokens: from {span.threshold:.4f}")
        if not len(rows.scores):
            continue
        tiers = [(tier.name, tier.threshold, of_tiers) for tier in decides.tiers]
        for name, value, by in [("threshold", decides.threshold, rows), *tiers]:
            m = binary_metrics(by.harmful, by.scores, value)
            write_lines(
                f"{what}{name}: from {value:.4f}, precision {_share(m.precision)}, "
                f"recall {_share(m.recall)}, macro-F1 {_share(m.macro_f1_of_both)} "
                f"on {m.rows} {split} rows"
            )


def say_windows(scores: "Scores", *manifests: Manifest) -> None:
    """Say that long rows were read in windows, where there are such; trajectories never are.

    Args:
        manifests: of the bundle, or of an ensemble's members.
    """
    at_once = min(manifest.text.max_length for manifest in manifests)
    long = int((scores.tokens > at_once).sum())
    if long and not manifests[0].is_trajectory:
        report(
            f"{long} of {len(scores.tokens)} rows have more than {at_once} tokens: they are read "
            "in windows, as guards read them by default, and the highest counts"
        )


def described(decision: Decision) -> str:
    """What a decision says, in one line."""
    lines = [("threshold", decision.threshold)]
    lines += [(tier.name, tier.threshold) for tier in decision.tiers]
    lines += [(f"spans of {span.tokens} tokens", span.threshold) for span in decision.spans]
    return ", ".join(f"{name} from {value:.4g}" for name, value in lines)


def finish(record: Path | None, old: Decision, new: Decision) -> None:
    """Say what the new decision dropped, and keep it in the head's folder.

    Args:
        record: that folder; None keeps it nowhere else.
    """
    if old.responses is not None and new.responses is None:
        report("responses had thresholds of their own: those of all other texts now hold for them")
    kept = {tier.name for tier in new.tiers}
    if dropped := [tier.name for tier in old.tiers if tier.name not in kept]:
        report(f"the tiers that were given are all there are now; dropped: {', '.join(dropped)}")
    if record is not None:
        from siren_export.heads.decision_file import write_decision

        report(f"{write_decision(record, new)}: written")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
