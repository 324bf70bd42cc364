"""A calibration by rules: what it is asked for, chosen by and tells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.thresholds import ResponseThresholds, Tier
from siren_runtime.commands.console import report
from siren_train.data.reading import sampled
from siren_train.data.rows import Columns, Row, read_all
from siren_train.data.sources import Source

from . import options
from .calibration_shown import described, finish, print_decision

if TYPE_CHECKING:
    from siren_train.measure.calibrate_spans import SpanScores
    from siren_train.measure.evaluate import Scores


@dataclass(frozen=True)
class ByRules:
    """What a bundle, a generator or an ensemble is calibrated by.

    Attributes:
        threshold, tiers: rules, as `siren_train.measure.threshold_rules.find_threshold` takes them;
            numbers where there are no sources.
        spans: the same, as `siren_train.measure.calibrate_spans.find_span_thresholds` takes it.
        span_sizes: of which sizes these are, in tokens, ascending.
        diluted: for spans, rows count alone and behind so many tokens of safe rows.
        columns_of: `options.make_columns`, but for what a bundle or generator says.
        max_rows: of each data set, of each class alike; None is all.
        responses: whether to choose by the rows with a response, and apart from that by the rest.
        threads: of the CPU; None takes all.
        written: tiers that were written by hand, in place of rules for such.
    """

    threshold: str | None
    tiers: Mapping[str, str]
    spans: str | None
    span_sizes: Sequence[int]
    diluted: Sequence[int]
    sources: Sequence[Source]
    columns_of: Callable[..., Columns]
    split: str
    max_rows: int | None
    responses: bool
    threads: int | None
    written: Sequence[Tier] | None = None

    def check(self) -> None:
        """Refuse rules that are none, or that need rows or a threshold.

        Raises:
            typer.BadParameter: there is no rule, or one that needs rows where there are none.
            InputError: one is none.
        """
        from siren_train.measure.calibrate_spans import check_rules

        given = self.threshold or self.tiers or self.spans
        if not given or (self.responses and not (self.sources and self.threshold)):
            raise typer.BadParameter(
                "give --threshold, --tier or --spans, and with --responses --threshold and "
                "labelled text"
            )
        check_rules(self.threshold, self.tiers, self.spans)
        self.check_stated()

    def check_stated(self) -> None:
        """Refuse rules that need rows where there are none.

        Raises:
            typer.BadParameter: there are no sources, and a rule is no number.
        """
        for rule in (self.threshold, *self.tiers.values(), self.spans):
            if rule and not self.sources:
                options.stated(rule)

    def decision(
        self, old: Decision, scores: "Scores", span_scores: "SpanScores | None" = None
    ) -> Decision:
        """How a head decides that decided by `old`.

        Args:
            span_scores: None where there are no sources, or no rule for spans.

        Raises:
            InputError, BundleError: no threshold meets a rule, or as `choose_tiers`.
        """
        from siren_train.measure.calibrate_responses import choose_spans, choose_tiers
        from siren_train.measure.decisions import with_spans, with_thresholds

        threshold, responses = self._thresholds(scores)
        new = with_thresholds(old, threshold, None, responses)
        if span_scores is not None and self.spans:
            say_unseen(span_scores, by_response=bool(new.responses))
            new = with_spans(new, *choose_spans(span_scores, self.spans, bool(new.responses)))
        elif self.spans:
            new = with_spans(new, options.stated_spans(self.spans, self.span_sizes), None)
        if not self.tiers:
            return with_thresholds(new, None, self.written, None)
        tiers, *of_responses = choose_tiers(scores, self.tiers, new, each=responses is not None)
        if responses is not None:
            responses = ResponseThresholds(responses.threshold, of_responses[0])
        return with_thresholds(new, None, tiers, responses)

    def sizes(self, old: Decision) -> list[int]:
        """The sizes of spans that rows are scored with: those that reach tiers, new or kept.

        Args:
            old: how the head decided so far.
        """
        if not (self.tiers or self.written or old.tiers):
            return []
        return [*self.span_sizes] if self.spans else [span.tokens for span in old.spans]

    def rows_of_spans(self, columns: Columns) -> tuple[list[Row], list[Row], Sequence[int]]:
        """The rows whose spans are scored, those that they stand behind, and tokens of these.

        Raises:
            InputError: the data is unusable.
        """
        labelled = [row for row in read_all(self.sources, columns) if row.split == self.split]
        return sampled(labelled, self.max_rows), labelled, self.diluted

    def _thresholds(self, scores: "Scores") -> tuple[float | None, ResponseThresholds | None]:
        """The threshold of texts, or of all; and that of texts with a response.

        Where rows are too few for two, that is said.
        """
        from siren_train.measure.calibrate_responses import LEAST_ROWS, choose_thresholds
        from siren_train.measure.threshold_rules import find_threshold

        if self.threshold is None:
            return None, None
        if self.responses:
            if (found := choose_thresholds(scores, self.threshold)) is not None:
                return found[0], ResponseThresholds(found[1])
            report(
                f"--responses: fewer than {LEAST_ROWS} rows of a class with a response, or "
                "without; all texts have the thresholds that suit all rows"
            )
        return find_threshold(scores, self.threshold), None

    def tell(
        self,
        folder: Path,
        old: Decision,
        new: Decision,
        scores: "Scores",
        record: Path | None = None,
    ) -> None:
        """Print what was decided, once it is written into `folder`, and keep it in `record` too."""
        if self.sources:
            print_decision(new, scores, self.split)
        else:
            report(f"{folder}: {described(new)}")
        finish(record, old, new)


def say_unseen(spans: "SpanScores", *, by_response: bool) -> None:
    """Say of which sizes no safe row has spans, where thresholds are chosen by all or by each."""
    from siren_train.measure.calibrate_responses import span_groups
    from siren_train.measure.calibrate_spans import unseen_sizes

    groups = span_groups(spans, by_response)
    whose = ["safe row"] if len(groups) == 1 else ["safe prompt", "safe row with a response"]
    for rows, group in zip(whose, groups, strict=True):
        for size in unseen_sizes(group):
            report(
                f"--spans: no {rows} is longer than {size} tokens; there, spans of so many do not "
                "count"
            )
