"""What guard.json reports of an export: verification, quantization, how a precision was chosen."""

from typing import Literal

import msgspec

from .types import Positive, Precision, Probability, Size, Strict


class HeadVerification(Strict, frozen=True):
    """How far a head's scores, and the probabilities of its categories, are from a reference's.

    Of each text the largest difference counts. `passed` says whether it keeps the bound.
    """

    passed: bool
    max_difference: float
    mean_difference: float
    verdict_agreement: Probability
    worst_text: str


class Verification(Strict, frozen=True):
    """The bundle's scores against a reference's, over the built-in texts.

    `status` is "passed", "drifted" (kept by --allow-drift), or "unverified"; `reason` says why, or
    in what other form than its own the graph was run, and which tokens the embedding lacks.
    `bound` is for the difference that `bounded` names, over the texts. What begins with
    `stream` is of the streaming graph, read in chunks, against the whole-sequence graph, of all
    heads. What begins with `exit` is of the segments, run one after the other, against the same.
    What begins with `batch` is of texts read together, padded, against each alone, by `bound` too.
    `further` are those of the other heads and of exits by name; the rest are the primary head's.
    """

    status: Literal["passed", "drifted", "unverified"]
    reason: str | None = None
    reference: str | None = None
    texts: Size = 0
    bound: float | None = None
    bounded: Literal["max", "mean"] = "max"
    max_difference: float | None = None
    mean_difference: float | None = None
    verdict_agreement: Probability | None = None
    worst_text: str | None = None
    stream_texts: Size = 0
    stream_bound: float | None = None
    stream_max_difference: float | None = None
    stream_mean_difference: float | None = None
    stream_bounded: Literal["max", "mean"] = "max"
    batch_texts: Size = 0
    batch_max_difference: float | None = None
    batch_mean_difference: float | None = None
    exit_texts: Size = 0
    exit_bound: float | None = None
    exit_max_difference: float | None = None
    further: dict[str, HeadVerification] = msgspec.field(default_factory=dict)

    @property
    def batch_drifted(self) -> bool:
        """Whether what stands beside a text in a batch changes its score beyond the bound."""
        found = self.batch_mean_difference if self.bounded == "mean" else self.batch_max_difference
        return self.bound is not None and found is not None and not found <= self.bound

    @property
    def stream_difference(self) -> float | None:
        """The difference of streams that their bound is of; None where there are none."""
        if self.stream_bounded == "mean":
            return self.stream_mean_difference
        return self.stream_max_difference

    @property
    def stream_drifted(self) -> bool:
        """Whether the streaming graph misses its bound."""
        return (
            self.stream_bound is not None
            and self.stream_difference is not None
            and not self.stream_difference <= self.stream_bound
        )

    @property
    def exits_drifted(self) -> bool:
        """Whether the segments miss their bound."""
        return (
            self.exit_bound is not None
            and self.exit_max_difference is not None
            and not self.exit_max_difference <= self.exit_bound
        )


class Quantization(Strict, frozen=True):
    """What 8 or 4 bits were fitted to: so many example texts, `built_in` where none were named.

    `wider` names the matrices that have 8 bits where the others have 4.
    """

    examples: Size
    built_in: bool
    wider: list[str]

    @property
    def fitted(self) -> str:
        """What it was fitted to and what is wider, in a few words."""
        kind = "built-in " if self.built_in else ""
        wider = f", {len(self.wider)} matrices in 8 bits" if self.wider else ""
        return f"fitted to {self.examples} {kind}texts{wider}"


class Candidate(Strict, frozen=True):
    """One setting that was tried: a precision, and the matrices left in float32.

    `bytes` are those of the bundle's whole-sequence graph and its weights. `speed` is how many
    times float32's, timed in turns with it, one text at a time: the mean over texts of each
    text's median. `milliseconds` is float32's mean at its first turns over `speed`, so that
    settings compare though the machine is not always as fast. Score differences are to
    float32's; `changed_verdicts` of the texts get another verdict. `outcome` says why it was not
    kept.
    """

    precision: Precision
    keep_float: list[str]
    bytes: Size
    milliseconds: float
    speed: float
    mean_difference: float
    p99_difference: float
    max_difference: float
    changed_verdicts: Size
    outcome: str
    kept: bool = False

    @property
    def setting(self) -> str:
        """What was tried, in a few words."""
        kept = len(self.keep_float)
        return f"{self.precision}, {kept} matrices float32" if kept else self.precision


class Tuning(Strict, frozen=True):
    """How the precision was chosen: the fastest of `candidates` within `budget` on `texts` texts.

    Within it, the mean |score difference| to float32 and the share of changed verdicts are each
    at most `budget`.
    """

    budget: Probability
    texts: Positive
    candidates: list[Candidate]
