"""Shares of pairs are those of the whole matrix, made in blocks, and must add up."""

import numpy as np
import pytest

from siren_runtime.errors import BackendError
from siren_runtime.scoring import pairs
from siren_runtime.scoring.pairs import SecondOrder, strongest_pairs


@pytest.fixture
def term():
    rng = np.random.default_rng(0)
    return SecondOrder(rng.normal(size=4), *(rng.normal(size=s) for s in ((4, 23), 23, 23)))


def moved(term):
    return term.factors @ sum(
        sign * (term.directions @ x) ** 2 for sign, x in ((1, term.text), (-1, term.baseline))
    )


@pytest.mark.parametrize("elements", [1, 23 * 5, 10_000])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_the_strongest_pairs_are_those_of_the_whole_matrix(term, monkeypatch, elements, count):
    monkeypatch.setattr(pairs, "_ELEMENTS", elements)
    matrix = np.einsum("r,ri,rj->ij", term.factors, term.directions, term.directions)
    shares = matrix * (np.outer(term.text, term.text) - np.outer(term.baseline, term.baseline))
    expected = {
        (i, j): shares[i, j] * (1 if i == j else 2) for i in range(23) for j in range(i, 23)
    }
    assert sum(expected.values()) == pytest.approx(moved(term))
    found = strongest_pairs(term, moved(term), count)
    ranked = sorted(expected, key=lambda pair: -abs(expected[pair]))[:count]
    assert [pair[:2] for pair in found] == ranked
    for i, j, share in found:
        assert share == pytest.approx(expected[i, j])


def test_pairs_that_do_not_add_up_are_an_error(term):
    with pytest.raises(BackendError, match="misses what the second order moved"):
        strongest_pairs(term, moved(term) + 1.0, 3)
