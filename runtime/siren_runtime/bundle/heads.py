"""What guard.json says of a head: what it reads, how it pools, what it gives, how it decides."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec

from siren_runtime.errors import BundleError

from .thresholds import (
    ResponseThresholds,
    SpanThreshold,
    Tier,
    check_response_spans,
    check_response_tiers,
    check_spans,
    check_tiers,
)
from .types import Positive, Probability, Size, Strict

HARMFUL: Final = 1  # the class whose probability is the score
PRIMARY_HEAD: Final = "harm"  # the first head's name where it is given none
HEAD_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"

# What of a block is read, and how its tokens become one row: their mean, or the last of them.
Pooling = Literal["residual_mean", "mlp_mean", "residual_last", "mlp_last"]
# Logits to probabilities: of classes of which one is true; of labels, each true or not; of
# harm by the orders of a polynomial, from the lowest to the highest; or of harm by one logit.
Activation = Literal["softmax", "sigmoid", "orders", "logistic"]
Temperature = Annotated[float, msgspec.Meta(ge=0.01, le=100.0)]
# Tokens of a moving average of scores: exponential, with weight 2 / (tokens + 1).
Smoothing = Annotated[int, msgspec.Meta(ge=1, le=4096)]

# The keys of OpenAI's moderations, as of omni-moderation-latest.
OPENAI_KEYS: Final = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit",
    "illicit/violent", "self-harm", "self-harm/intent", "self-harm/instructions", "sexual",
    "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


class HeadSpec(Strict, frozen=True):
    """A head of the bundle.

    `kind` names what authored its graph; a runtime goes by the other fields. `layers` are the
    blocks that it reads, `features` how many neurons it reads of them, `classes` the number of
    its logits. `labels` names them by index, or is empty.

    With "softmax" one class is true, and class 1 is harm. With "sigmoid" each label is true or not,
    all are kinds of harm, and the score is the likeliest's probability. With "orders" each logit is
    of harm, by so many orders, and the score is by all of them. With "logistic" the one logit is
    of harm. `openai` says by which
    labels each of OpenAI's 13 keys is covered; none cover a key that has an empty list. Without a
    table it is empty. `rank` is how many directions each order of a polynomial beyond the first
    has; 0 where there is none, and in bundles whose explain graphs do not tell of pairs.
    """

    kind: Annotated[str, msgspec.Meta(min_length=1)]
    pooling: Pooling
    layers: list[Size]
    features: Positive
    classes: Positive
    labels: list[str] = msgspec.field(default_factory=list)
    activation: Activation = "softmax"
    openai: dict[str, list[str]] = msgspec.field(default_factory=dict)
    rank: Size = 0

    @property
    def pools_mean(self) -> bool:
        """Whether it reads the mean over tokens, whose running state is their sum; else the last
        token, which needs no state.
        """
        return self.pooling in ("residual_mean", "mlp_mean")

    @property
    def has_labels(self) -> bool:
        """Whether its labels may hold beside one another, and do not exclude one another."""
        return self.activation == "sigmoid"

    @property
    def orders(self) -> int:
        """How many orders it can be read by; 0 where it has none."""
        return self.classes if self.activation == "orders" else 0

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of what it gives probabilities of, beside harm; empty where it tells harm from
        the rest, and no more.
        """
        if self.activation in ("orders", "logistic"):
            return ()
        if self.activation == "softmax" and self.classes == 2:
            return ()
        return tuple(self.labels) or tuple(map(str, range(self.classes)))


class LabelDecision(Strict, frozen=True):
    """From which probability a label holds; its logit is divided by the temperature before."""

    name: str
    threshold: Probability
    temperature: Temperature = 1.0


class Decision(Strict, frozen=True):
    """How a head's logits become a verdict: set by the artifact, and by calibration.

    Tiers fall in threshold, spans ascend in size. Logits of classes are divided by `temperature`
    before the softmax. `labels` are those of a head of independent labels, in their order; where
    there are none, each holds from `threshold` on. `responses` are the threshold, the tiers and the
    spans of texts with a response; None where they are those of all texts.

    `smoothing` is of streams: the head's score at a token is then the exponential moving average
    of what it gives at each, over so many tokens. 1 smooths nothing. A whole text has one score.
    """

    threshold: Probability
    tiers: list[Tier] = msgspec.field(default_factory=list)
    spans: list[SpanThreshold] = msgspec.field(default_factory=list)
    temperature: Temperature = 1.0
    labels: list[LabelDecision] = msgspec.field(default_factory=list)
    smoothing: Smoothing = 1
    responses: ResponseThresholds | None = None


def check_head(name: str, head: HeadSpec, blocks: int, origin: str) -> None:
    """Refuse a head that contradicts itself, or that reads blocks beyond the first `blocks`.

    Raises:
        BundleError: it does.
    """
    what = f"{origin}: heads.{name}"
    layers, labels = head.layers, head.labels
    if not layers or sorted(set(layers)) != layers or layers[-1] >= blocks:
        raise BundleError(
            f"{what}.layers must ascend and end below blocks_kept ({blocks}), found {layers}"
        )
    if head.activation == "softmax" and head.classes < 2:
        raise BundleError(f"{what}.classes is {head.classes}; a softmax needs 2 at least")
    if head.activation in ("orders", "logistic") and labels:
        raise BundleError(f"{what}.labels is {labels}; {head.activation} heads have no names")
    if head.rank and head.orders < 2:
        raise BundleError(f"{what}.rank is {head.rank}; it is of orders beyond the first")
    if head.activation == "logistic" and head.classes != 1:
        raise BundleError(f"{what}.classes is {head.classes}; a logistic head has 1 logit")
    if (labels or head.has_labels) and (
        (len(labels), len(set(labels))) != (head.classes,) * 2 or not all(labels)
    ):
        raise BundleError(f"{what}.labels is {labels}; expected {head.classes} different names")
    check_openai(head.openai, labels, f"{what}.openai", BundleError)


def check_pass(
    heads: Mapping[str, HeadSpec], blocks: int, key: str, pooled: int, origin: str
) -> None:
    """Refuse heads one of which contradicts itself, or that cannot read one pass together.

    Args:
        blocks: how many the pass has.
        key, pooled: what the manifest says that the heads read together, in numbers.

    Raises:
        BundleError: as `check_head`; they pool differently, or read other numbers of neurons.
    """
    for head_name, head in heads.items():
        check_head(head_name, head, blocks, origin)
    poolings = {head.pooling for head in heads.values()}
    if len(poolings) > 1:
        raise BundleError(
            f"{origin}: heads of one bundle pool alike, found {', '.join(sorted(poolings))}"
        )
    of_heads = [head.features for head in heads.values()]
    if not max(of_heads) <= pooled <= sum(of_heads):
        raise BundleError(
            f"{origin}: {key} is {pooled}; heads of {of_heads} features read from "
            f"{max(of_heads)} to {sum(of_heads)} neurons together"
        )


def check_openai(
    table: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    what: str,
    error: type[Exception],
) -> None:
    """Refuse a table of OpenAI's keys that is not whole, or names labels that there are not.

    Raises:
        error: it is so; an empty table is none.
    """
    if table and set(table) != set(OPENAI_KEYS):
        raise error(
            f"{what} must say of each of OpenAI's 13 keys which labels cover it, [] for none; "
            f"missing {sorted(set(OPENAI_KEYS) - set(table))}, unknown "
            f"{sorted(set(table) - set(OPENAI_KEYS))}"
        )
    for key, names in table.items():
        if unknown := sorted(set(names) - set(labels)):
            raise error(f"{what} covers {key!r} by {unknown}; the labels are {list(labels)}")


def check_decision(name: str, head: HeadSpec, decision: Decision, origin: str) -> None:
    """Refuse a decision that is not for such a head.

    Raises:
        BundleError: its tiers or spans are out of order, those of responses have other names or
            sizes, it has labels that are not the head's, one temperature, or thresholds of
            responses, for independent labels, or smooths what is not read token by token.
    """
    check_tiers(decision.tiers, origin)
    check_spans(decision.spans, origin)
    if decision.responses is not None:
        _check_responses(name, head, decision, decision.responses, origin)
    names = [label.name for label in decision.labels]
    expected = head.labels if head.has_labels else []
    if names and names != expected:
        raise BundleError(
            f"{origin}: the labels that head {name!r} decides on are {names}, expected {expected}"
        )
    if head.has_labels and decision.temperature != 1.0:
        raise BundleError(
            f"{origin}: the temperature of head {name!r} is {decision.temperature:g}; one of "
            "independent labels has a temperature for each of them"
        )
    if decision.smoothing != 1 and not head.pools_mean:
        raise BundleError(
            f"{origin}: the smoothing of head {name!r} is {decision.smoothing}; only heads that "
            "pool the mean are smoothed"
        )


def _check_responses(
    name: str, head: HeadSpec, decision: Decision, responses: ResponseThresholds, origin: str
) -> None:
    check_response_tiers(responses, decision.tiers, origin)
    check_response_spans(responses, decision.spans, origin)
    if head.has_labels:
        raise BundleError(
            f"{origin}: the head {name!r} has labels, which have thresholds of their own; those of "
            "responses are for heads of classes"
        )
