"""Bounds of exits: they save what they can, and lose no more than is allowed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siren_runtime.errors import InputError
from siren_train.measure import exit_bounds
from siren_train.measure.exit_bounds import HARMFUL, SAFE, ExitScores, choose_bounds, decisions
from siren_train.measure.metrics import macro_f1

DEPTHS, BLOCKS = (2, 4), 6


def noisy(rows: int = 600, seed: int = 0, noise: float = 1.2) -> ExitScores:
    """Rows whose exits see the label through more noise than the whole guard does."""
    rng = np.random.default_rng(seed)
    harmful = rng.random(rows) < 0.45
    seen = [
        1 / (1 + np.exp(-np.where(harmful, s, -s) - rng.normal(0, noise, rows)))
        for s in (2.5, 1.0, 2.0)
    ]
    datasets = np.where(rng.random(rows) < 0.5, "a", "b")
    return ExitScores(seen[0], np.stack(seen[1:], 1), harmful, datasets, rng.integers(4, 60, rows))


def verdicts(scores: ExitScores, bounds: list[tuple[float | None, float | None]], cutoff: float):
    _, side = decisions(scores.exits, bounds)
    return np.where(side < 0, scores.whole >= cutoff, side == HARMFUL)


def mean_f1(scores: ExitScores, found) -> float:
    labels, verdict = scores.harmful.astype(int), found.astype(int)
    of = [scores.datasets == name for name in np.unique(scores.datasets)]
    return float(np.mean([macro_f1(labels[rows], verdict[rows]) for rows in of]))


def test_on_rows_of_the_same_kind_the_loss_holds_in_the_mean() -> None:
    losses = []
    for seed in range(12):
        scores, others = noisy(800, seed), noisy(4000, seed + 100)
        bounds = choose_bounds(scores, DEPTHS, BLOCKS, [0.5], 0.01).bounds
        whole = mean_f1(others, others.whole >= 0.5)
        _, side = decisions(others.exits, bounds)
        right = (others.whole >= 0.5) == others.harmful
        wrong = (side >= 0) & ((side == HARMFUL) != others.harmful)
        verdict = np.where(right & ~wrong, others.harmful, ~others.harmful)
        losses.append(whole - mean_f1(others, verdict))
    assert np.mean(losses) <= 0.011


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from([0.0, 0.003, 0.02]), st.sampled_from([[0.5], [0.3, 0.8]])
)
def test_no_more_macro_f1_is_lost_than_is_allowed(
    seed: int, loss: float, cutoffs: list[float]
) -> None:
    scores = noisy(200, seed)
    found = choose_bounds(scores, DEPTHS, BLOCKS, cutoffs, loss)
    assert found.lost <= loss + 1e-12
    for cutoff in cutoffs:
        whole = mean_f1(scores, scores.whole >= cutoff)
        assert mean_f1(scores, verdicts(scores, found.bounds, cutoff)) >= whole - loss - 1e-9
    for low, high in found.bounds:
        assert low is None or high is None or low < high


def test_a_larger_loss_saves_more_and_the_cost_is_that_of_the_tokens() -> None:
    scores = noisy()
    costs = []
    for loss in (0.0, 0.01, 0.03, 1.0):
        found = choose_bounds(scores, DEPTHS, BLOCKS, [0.5], loss)
        number, _ = decisions(scores.exits, found.bounds)
        depths = np.array([*DEPTHS, BLOCKS])[number]
        expected = (depths * scores.tokens).sum() / (BLOCKS * scores.tokens.sum())
        assert found.cost == pytest.approx(expected)
        costs.append(found.cost)
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == 1  # a bound that is open may lose a row
    assert costs[1] < 0.9
    assert costs[-1] == pytest.approx(DEPTHS[0] / BLOCKS, abs=0.02)


def test_an_exit_that_is_always_right_decides_everything() -> None:
    scores = noisy()
    perfect = np.where(scores.harmful, 0.9, 0.1)[:, None]
    exact = ExitScores(scores.whole, perfect, scores.harmful, scores.datasets, scores.tokens)
    found = choose_bounds(exact, (2,), BLOCKS, [0.5], 0.01)
    assert found.bounds == [(0.1, 0.9)]
    assert found.lost > 0  # as many as two rows must be expected
    assert found.cost == pytest.approx(1 / 3)


def one_exit(rows: int = 2000) -> ExitScores:
    """Rows of a whole guard that is always right, and of one exit that mostly is."""
    rng = np.random.default_rng(0)
    harmful = rng.random(rows) < 0.5
    seen = 1 / (1 + np.exp(-np.where(harmful, 1.5, -1.5) - rng.normal(size=rows)))
    whole, datasets = np.where(harmful, 0.99, 0.01), np.array(["a"] * rows)
    return ExitScores(whole, seen[:, None], harmful, datasets, np.full(rows, 50))


def test_texts_that_are_there_twice_do_not_stop_a_bound() -> None:
    scores = one_exit()
    (seen,) = scores.exits.T
    lowest = np.argsort(np.where(scores.harmful, seen, 2.0))[0]  # the first harmful row to be lost
    highest = np.argsort(np.where(scores.harmful, -1.0, seen))[-1]
    rows = np.array([*range(len(seen)), lowest, highest])
    twice = ExitScores(**{name: values[rows] for name, values in vars(scores).items()})
    cost = choose_bounds(scores, (2,), BLOCKS, [0.5], 0.03).cost
    assert cost < 0.5
    assert choose_bounds(twice, (2,), BLOCKS, [0.5], 0.03).cost == pytest.approx(cost, abs=0.05)


def test_a_hard_row_at_the_end_of_the_scores_does_not_keep_an_exit_closed() -> None:
    scores = one_exit()
    (seen,) = scores.exits.T
    lowest = np.argsort(np.where(scores.harmful, seen, 2.0))[0]
    highest = np.argsort(np.where(scores.harmful, -1.0, seen))[-1]
    hard = seen.copy()
    hard[lowest], hard[highest] = seen.min() / 2, (1 + seen.max()) / 2
    cost = choose_bounds(scores, (2,), BLOCKS, [0.5], 0.03).cost
    found = choose_bounds(replace(scores, exits=hard[:, None]), (2,), BLOCKS, [0.5], 0.03)
    assert found.cost == pytest.approx(cost, abs=0.05)
    assert found.lost <= 0.03


def test_a_bound_moves_past_rows_that_an_earlier_exit_decides() -> None:
    groups = {  # how many, harmful, and the scores of the exits
        "safe by the first": (100, False, 0.1, 0.2),
        "harmful by the first, hard for the second": (2, True, 0.9, 0.25),
        "safe by the second alone": (100, False, 0.5, 0.3),
        "harmful by the first": (100, True, 0.9, 0.9),
        "harmful by the second alone": (50, True, 0.3, 0.9),
    }
    count, harmful, first, second = map(np.array, zip(*groups.values(), strict=True))
    labels, rows = np.repeat(harmful, count), int(count.sum())
    exits = np.stack([np.repeat(first, count), np.repeat(second, count)], axis=1)
    whole, datasets = np.where(labels, 0.99, 0.01), np.array(["a"] * rows)
    scores = ExitScores(whole, exits, labels, datasets, np.ones(rows, np.int64))
    found = choose_bounds(scores, DEPTHS, BLOCKS, [0.5], 0.03)
    assert found.bounds == [(0.1, 0.9), (0.3, 0.9)]
    assert found.cost == pytest.approx((202 * 2 + 150 * 4) / (352 * 6))


def test_bounds_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def counted(scores, bounds):
        measured.append(tuple(bounds))
        return decisions(scores, bounds)

    monkeypatch.setattr(exit_bounds, "decisions", counted)
    choose_bounds(one_exit(), (2,), BLOCKS, [0.5], 0.03)
    assert len(measured) == len(set(measured)) > 2


def test_what_an_exit_corrects_by_luck_buys_no_errors_elsewhere() -> None:
    scores = noisy(noise=2.0)
    found = choose_bounds(scores, DEPTHS, BLOCKS, [0.5], 0.01)
    _, side = decisions(scores.exits, found.bounds)
    right = (scores.whole >= 0.5) == scores.harmful
    wrong = (side >= 0) & ((side == HARMFUL) != scores.harmful)
    verdict = np.where(right & ~wrong, scores.harmful, ~scores.harmful)  # with no luck
    assert (wrong & right).any()
    assert mean_f1(scores, scores.whole >= 0.5) - mean_f1(scores, verdict) <= 0.01


def test_the_first_exit_that_decides_counts() -> None:
    scores = np.array([[0.1, 0.9], [0.5, 0.9], [0.5, 0.5], [0.9, 0.1]])
    number, side = decisions(scores, [(0.2, 0.8), (0.3, 0.7)])
    assert number.tolist() == [0, 1, 2, 0]
    assert side.tolist() == [SAFE, HARMFUL, -1, HARMFUL]
    number, side = decisions(scores, [(None, None), (None, 0.9)])
    assert number.tolist() == [1, 1, 2, 2]


def test_a_guard_that_is_right_on_no_row_of_a_class_is_refused() -> None:
    scores = noisy(50)
    with pytest.raises(InputError, match="judges no row of a class rightly"):
        choose_bounds(scores, DEPTHS, BLOCKS, [1.0], 0.1)
