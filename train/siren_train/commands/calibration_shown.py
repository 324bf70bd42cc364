"""What a calibration found, for people."""

from typing import TYPE_CHECKING

import typer

from siren_runtime.bundle.heads import Decision

if TYPE_CHECKING:
    from siren_train.measure.evaluate import Scores


def print_decision(decision: Decision, scores: "Scores", split: str) -> None:
    """Print what the threshold and each tier give on the rows of `split` that they are for."""
    from siren_train.measure.metrics import binary_metrics

    parts = [("", decision.threshold, decision.tiers, scores)]
    if decision.responses is not None:
        with_response, of_them = scores.has_response, decision.responses
        parts = [
            ("", decision.threshold, decision.tiers, scores.of(~with_response)),
            ("responses, ", of_them.threshold, of_them.tiers, scores.of(with_response)),
        ]
    for what, threshold, tiers, rows in parts:
        if not len(rows.scores):
            continue
        for name, value in [("threshold", threshold), *((t.name, t.threshold) for t in tiers)]:
            m = binary_metrics(rows.harmful, rows.scores, value)
            typer.echo(
                f"{what}{name}: from {value:.4f}, precision {_share(m.precision)}, recall "
                f"{_share(m.recall)}, macro-F1 {m.macro_f1:.3f} on {m.rows} {split} rows"
            )


def described(decision: Decision) -> str:
    """What a decision says, in one line."""
    lines = [("threshold", decision.threshold)]
    lines += [(tier.name, tier.threshold) for tier in decision.tiers]
    lines += [(f"spans of {span.tokens} tokens", span.threshold) for span in decision.spans]
    return ", ".join(f"{name} from {value:.4g}" for name, value in lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
