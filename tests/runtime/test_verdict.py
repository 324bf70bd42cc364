"""From the numbers of heads to verdicts, at the edges of thresholds and orders."""

import random

import pytest

from siren_runtime.backends.readout import HeadText, HighestSpan
from siren_runtime.bundle.thresholds import Tier
from siren_runtime.scoring.verdict import HeadJudge, Judge
from siren_runtime.text.reading import Limits


def test_a_span_at_its_threshold_is_harmful_and_one_below_is_not_so_by_it() -> None:
    rng = random.Random(0)
    for _ in range(300):
        threshold, own = rng.uniform(0.01, 0.99), rng.uniform(0.01, 0.999)
        head = HeadJudge(threshold, (Tier("review", threshold),), {8: own}, {})
        judge = Judge({"harm": head}, Limits())

        def verdict(span: float, judge: Judge = judge) -> tuple[bool | None, str | None, bool]:
            text = HeadText(0.0, None, {}, (HighestSpan(8, span, (0, 1)),))
            found = judge.on_head("harm", [text], None, 0.0, False)
            return found.is_harmful, found.tier, span >= found.spans[0].threshold

        assert verdict(own) == (True, "review", True)
        assert verdict(own - 1e-6) == (False, None, False)


@pytest.mark.parametrize(
    ("order", "scores"), [(None, [0.2, 0.9]), (3, [0.2, 0.9]), (2, [0.2, 0.8])]
)
def test_a_head_with_fewer_orders_decides_by_its_highest(
    order: int | None, scores: list[float]
) -> None:
    heads = {name: HeadJudge(0.5, (), {}, {}) for name in ("two", "three")}
    texts = {
        "two": HeadText(0.2, None, {}, (), (0.1, 0.2), (None, None)),
        "three": HeadText(0.9, None, {}, (), (0.7, 0.8, 0.9), (None, None, None)),
    }
    found = Judge(heads, Limits()).on_heads([texts], None, 0.0, False, order)
    assert [head.score for head in found.values()] == scores
