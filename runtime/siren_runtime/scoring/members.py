"""What a guard is before it scores: its scorers, and what decides on the mean of their scores."""

import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from siren_runtime.bundle.arguments import truth_value, whole_number
from siren_runtime.bundle.ensemble import check_heads, mean_decisions
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.thresholds import (
    ResponseThresholds,
    SpanThreshold,
    Tier,
    checked_threshold,
)
from siren_runtime.errors import BundleError, InputError
from siren_runtime.text.deadline import Deadline
from siren_runtime.text.reading import Limits, LongText

from .call import Call, checked_order
from .early import cutoffs_of_exits, with_early
from .scorer import Scorer
from .verdict import judge_of

if TYPE_CHECKING:  # guards that do not stream need not wait for it
    from siren_runtime.streaming.decision import AtTier
    from siren_runtime.streaming.handles import Streams

_LIMITS = Limits()


class Members:
    """One scorer or several, and how the mean of their scores decides."""

    def __init__(
        self,
        scorers: Sequence[Scorer],
        *,
        threshold: float | None = None,
        tiers: Sequence[Tier] | None = None,
        span_thresholds: Sequence[SpanThreshold] | None = None,
        responses: ResponseThresholds | None = None,
        limits: Limits = _LIMITS,
    ) -> None:
        """Average scorers; `Guard.load` is the usual way to open them.

        Args:
            threshold: None is the mean of the members'.
            tiers: by falling threshold; None are those of the one member, an ensemble has none.
            span_thresholds: None are those of the one member, or the mean of several's.
            responses: of texts with a response; None is `threshold` and `tiers` where these are
                given, else what the members say.
            limits: what is read of a text, and what is refused.

        Raises:
            BundleError: there is no scorer, or their classes differ.
        """
        if not scorers:
            raise BundleError("a guard has one member or more, found none")
        self.scorers = tuple(scorers)
        check_heads(self.manifests)
        decisions = mean_decisions(self.manifests)
        self.judge = judge_of(
            self.manifests[0].heads,
            decisions,
            limits,
            threshold=threshold,
            tiers=tiers,
            spans=span_thresholds,
            responses=responses,
        )
        self._warned = False

    @property
    def manifest(self) -> Manifest:
        """What guard.json says. An ensemble has none: InputError; its members' are `manifests`."""
        if len(self.scorers) > 1:
            raise InputError(f"the ensemble of {self.base_model_id} has its members' `manifests`")
        return self.manifests[0]

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """What guard.json of each member says."""
        return tuple(scorer.manifest for scorer in self.scorers)

    @property
    def default_threshold(self) -> float:
        """The threshold that applies where a call passes none, to texts without a response."""
        return self.judge.threshold

    @property
    def tiers(self) -> "tuple[AtTier, ...]":
        """The tiers of calibration as decision rules for streams; empty if there are none."""
        return self.tiers_of(None)

    def tiers_of(self, prompt: str | None) -> "tuple[AtTier, ...]":
        """As `tiers`; of a stream with a prompt those of responses, where there are such."""
        from siren_runtime.streaming.decision import AtTier

        head = self.judge.primary.of_text(prompt is not None)
        return tuple(AtTier(tier.name, tier.threshold) for tier in head.tiers)

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the heads, whose verdicts are `ScoreResult.heads`; the primary one first."""
        return tuple(self.judge.heads)

    @property
    def base_model_id(self) -> str:
        """What the head names as its backbone; of an ensemble's members joined by " + "."""
        backbones = (manifest.backbone for manifest in self.manifests)
        return " + ".join((backbone.named or backbone).id for backbone in backbones)

    @property
    def backend(self) -> str:
        """What the guard runs on: "cpu", "cuda", "tensorrt" or "tensorrt-rtx"; joined as above."""
        return " + ".join(scorer.backend_name for scorer in self.scorers)

    def call(
        self,
        threshold: float | None = None,
        features: bool = False,
        long_text: LongText | None = None,
        spans: bool | Iterable[int] | None = None,
        *,
        token_budget: int | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
        order: int | None = None,
    ) -> Call:
        """The settings of a call as `score_batch` takes them, checked; None is what the guard says.

        Raises:
            InputError: one is out of range.
        """
        judge, limits, features = self.judge, self.judge.limits, truth_value("features", features)
        if long_text is not None:
            limits = replace(limits, long_text=long_text)
        limits = limits.asking(spans, judge.span_sizes)
        threshold = None if threshold is None else checked_threshold(threshold)
        decides_from = judge.threshold if threshold is None else threshold
        limits = with_early(limits, self.manifests, decides_from, judge.primary, features)
        order = checked_order(order, self.manifests[0].heads)
        return Call(threshold, features, limits, token_budget, Deadline(deadline, cancel), order)

    def close(self) -> None:
        """Free the engines. Nothing scores after that, but streams that are open until closed."""
        for scorer in self.scorers:
            scorer.close()

    def _open_streams(self, max_streams: int | None, max_tokens: int | None) -> "Streams":
        """What `stream` and `streams` do; called by both, so that warnings name their caller."""
        if max_streams is not None:
            max_streams = whole_number("max_streams", max_streams, 1)
        from siren_runtime.streaming.decision import Cutoffs
        from siren_runtime.streaming.handles import Streams
        from siren_runtime.streaming.sessions import Sessions

        opened = [scorer.stream_member(max_tokens) for scorer in self.scorers]
        reasons = [why for _, why in opened if why is not None]
        self._warn_once(reasons, 4)
        members, judge = [member for member, _ in opened], self.judge
        cutoffs = cutoffs_of_exits(self.manifests, judge.threshold, judge.primary)
        exits = Cutoffs(judge.threshold, cutoffs[0], cutoffs[-1]) if cutoffs else None
        sessions = Sessions(members, max_streams, judge.on_heads, judge.limits, exits)
        return Streams(sessions)

    def _warn_once(self, reasons: Sequence[str], level: int = 3) -> None:
        if reasons and not self._warned:
            self._warned = True
            why = "; ".join(reasons)
            warnings.warn(f"{why}, so each feed of a stream re-encodes its text", stacklevel=level)
