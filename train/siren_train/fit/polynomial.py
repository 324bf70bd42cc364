"""Train a polynomial head (TPC, arXiv 2509.26238) order by order.

The linear term is a logistic regression. Each further order is fitted to what the lower ones leave:
their logits enter as numbers that were computed before, so nothing can move them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from siren_export.heads.polynomial import PolynomialHead, Term
from siren_export.heads.selected import LayerSelection, MeanPooling
from siren_runtime.bundle.progress import Progress, silent
from siren_train.measure.metrics import MacroF1, macro_f1_by_dataset
from siren_train.store.features import FeatureSet, FloatArray, Standardizer, balanced_weights

from .logistic import fit_logistic
from .selection import gather

STRENGTHS = (1.0, 0.1, 0.01, 0.001)  # C of the logistic regression
RATES, DECAYS, DROPOUTS = (1e-3, 3e-4), (0.1, 1.0), (0.0, 0.2)
EPOCHS, BATCH, CLIP = 20, 256, 1.0
_FIRST_FACTOR = 0.02  # times a normal number, where an order starts
_BALANCE = 0.5


@dataclass(frozen=True)
class OrderReport:
    """What the head does by so many orders.

    Attributes:
        parameters: of all terms up to this one.
        validation: macro-F1 of its verdicts at one half on the validation rows.
    """

    order: int
    parameters: int
    validation: MacroF1


@dataclass(frozen=True, eq=False)
class _Rows:
    inputs: Tensor  # float32 [rows, n_features], standardized
    targets: Tensor  # float32 [rows], 1 for harm
    weights: Tensor  # float32 [rows]
    features: FeatureSet


def train_polynomial(
    train: FeatureSet,
    validation: FeatureSet,
    layers: Sequence[LayerSelection],
    pooling: MeanPooling,
    *,
    orders: int,
    rank: int,
    seed: int,
    progress: Progress = silent,
) -> tuple[PolynomialHead, list[OrderReport]]:
    """Fit a head that reads `layers`, and report on each order.

    Of each order the setting and epoch count that have the best macro-F1 on the validation rows;
    an order that finds nothing adds nothing.

    Args:
        train, validation: rows of two classes.
        orders: the highest.
        rank: directions of each order beyond the first.
    """
    raw = gather(train.pooled, layers)
    standardizer = Standardizer.fit(raw)
    fitted = _rows(train, standardizer.apply(raw))
    held_out = _rows(validation, standardizer.apply(gather(validation.pooled, layers)))
    progress("orders", 0, orders)
    weight, bias = _linear(fitted, held_out)
    linear = torch.from_numpy(weight)
    before = fitted.inputs @ linear + bias, held_out.inputs @ linear + bias
    reports = [_report(1, weight.size + 1, held_out, before[1])]
    progress("orders", 1, orders)
    terms = []
    for order in range(2, orders + 1):
        term = _fit_order(fitted, held_out, before, order, rank, seed)
        terms.append(term)
        before = (
            before[0] + _term(fitted.inputs, term, order),
            before[1] + _term(held_out.inputs, term, order),
        )
        parameters = reports[-1].parameters + term.directions.size + term.factors.size
        reports.append(_report(order, parameters, held_out, before[1]))
        progress("orders", order, orders)
    head = PolynomialHead(
        pooling, tuple(layers), standardizer.mean, standardizer.scale, weight, bias, tuple(terms)
    )
    return head, reports


def _rows(features: FeatureSet, inputs: FloatArray) -> _Rows:
    return _Rows(
        torch.from_numpy(inputs),
        torch.from_numpy(features.labels.astype(np.float32)),
        torch.from_numpy(balanced_weights(features, _BALANCE)),
        features,
    )


def _linear(fitted: _Rows, held_out: _Rows) -> tuple[FloatArray, float]:
    """The best logistic regression by macro-F1 on the rows held out."""
    best: tuple[float, FloatArray, float] | None = None
    for strength in STRENGTHS:
        rows = fitted.inputs.numpy(), fitted.targets.numpy(), fitted.weights.numpy()
        exact, bias = fit_logistic(*rows, strength)
        weight = exact.astype(np.float32)
        score = _macro_f1(held_out, held_out.inputs @ torch.from_numpy(weight) + bias).mean
        if best is None or score > best[0]:
            best = score, weight, bias
    assert best is not None
    return best[1], best[2]


def _fit_order(
    fitted: _Rows,
    held_out: _Rows,
    before: tuple[Tensor, Tensor],
    order: int,
    rank: int,
    seed: int,
) -> Term:
    width = fitted.inputs.shape[1]
    nothing = Term(np.zeros(rank, np.float32), np.zeros((rank, width), np.float32))
    best = _macro_f1(held_out, before[1]).mean, nothing
    for number, setting in enumerate(product(RATES, DECAYS, DROPOUTS)):
        generator = torch.Generator().manual_seed(seed * 1000 + order * 100 + number)
        factors = (_FIRST_FACTOR * torch.randn(rank, generator=generator)).requires_grad_()
        directions = torch.randn(rank, width, generator=generator) * width**-0.5
        directions.requires_grad_()
        for score, term in _epochs(
            fitted, held_out, before, order, factors, directions, setting, generator
        ):
            if score > best[0]:
                best = score, term
    return best[1]


def _epochs(
    fitted: _Rows,
    held_out: _Rows,
    before: tuple[Tensor, Tensor],
    order: int,
    factors: Tensor,
    directions: Tensor,
    setting: tuple[float, float, float],
    generator: torch.Generator,
) -> Sequence[tuple[float, Term]]:
    """Train one setting; after each epoch the macro-F1 on the rows held out, and the term."""
    rate, decay, dropout = setting
    optimizer = torch.optim.AdamW([factors, directions], rate, weight_decay=decay)
    found = []
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(fitted.inputs), generator=generator).split(BATCH):
            powers = (fitted.inputs[batch] @ directions.T) ** order
            if dropout:
                kept = torch.rand(powers.shape, generator=generator) >= dropout
                powers = powers * kept / (1 - dropout)
            losses = nn.functional.binary_cross_entropy_with_logits(
                before[0][batch] + powers @ factors, fitted.targets[batch], reduction="none"
            )
            optimizer.zero_grad()
            (losses * fitted.weights[batch]).mean().backward()
            nn.utils.clip_grad_norm_([factors, directions], CLIP)
            optimizer.step()
        term = Term(factors.detach().numpy().copy(), directions.detach().numpy().copy())
        score = _macro_f1(held_out, before[1] + _term(held_out.inputs, term, order)).mean
        found.append((score, term))
    return found


def _term(inputs: Tensor, term: Term, order: int) -> Tensor:
    """What an order adds to the logits, float32 [rows]."""
    powers = (inputs @ torch.from_numpy(term.directions).T) ** order
    return powers @ torch.from_numpy(term.factors)


def _macro_f1(rows: _Rows, logits: Tensor) -> MacroF1:
    features = rows.features
    verdicts = (logits.numpy() >= 0).astype(np.int64)
    return macro_f1_by_dataset(features.labels, verdicts, features.datasets, features.names)


def _report(order: int, parameters: int, held_out: _Rows, logits: Tensor) -> OrderReport:
    return OrderReport(order, parameters, _macro_f1(held_out, logits))
