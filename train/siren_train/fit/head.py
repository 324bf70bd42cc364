"""The head: ReLU MLPs on the features, trained one by one and folded into one.

Each member is trained on standardized features. Afterwards the members are folded into one MLP.
Its first layer stacks theirs, its later layers are block-diagonal, and its last layer averages
their logits. The standardization goes into the first layer: W' = W / scale, b' = b - W' mean. So
a head of several members is an ordinary head to every runtime.

Where features of another engine are at hand, a quarter of each batch is seen a second time with
what the engines differ by added, of some text and of either sign, and what that moves costs:

    loss = cross-entropy + 3 mean (z(x + noise) - z(x))^2      z: a class's logit over the other's

Each member draws its random numbers from a generator of its own and trains on one thread, so a
seed gives the same head on any number of threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from siren_export.heads.mlp import Dense
from siren_export.heads.selected import LayerSelection
from siren_train.store.features import (
    FeatureSet,
    FloatArray,
    Standardizer,
    balanced_weights,
)

from .selection import gains, gather
from .workers import worker_pool

_WARM_UP = 0.1  # share of the steps in which the learning rate rises
_NOISE_WEIGHT = 3.0  # of what noise moves; 10 and more took more of it, and macro-F1 too
_NOISY_SHARE = 4  # one row of so many is seen with noise too


@dataclass(frozen=True)
class HeadConfig:
    """How a head is built and trained.

    Attributes:
        hidden: widths of the hidden layers of each member.
        dropout: rate after every hidden layer.
        input_dropout: rate on the standardized features.
        learning_rate: of Adam, at its peak. It rises over the first tenth of the steps, and then
            falls to zero along a cosine.
        weight_decay: of Adam.
        epochs: passes over the rows.
        batch_size: rows a step.
        balance: as in balanced_weights.
        members: how many MLPs the head averages; they differ in their seeds.
    """

    hidden: tuple[int, ...] = (128, 32)
    dropout: float = 0.4
    input_dropout: float = 0.1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    epochs: int = 20
    batch_size: int = 256
    balance: float = 0.5
    members: int = 1


def train_head(
    features: FloatArray,
    labels: NDArray[Any],
    row_weights: FloatArray,
    gains: FloatArray,
    classes: int,
    config: HeadConfig,
    *,
    noise: FloatArray | None = None,
    seed: int,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Dense, ...]:
    """Train the members and fold them, and the standardization, into one MLP.

    Args:
        features: float32 [rows, n_features].
        labels: int64 [rows], or of labels that do not exclude one another [rows, classes], 0 or 1,
            or float32 between.
        row_weights: float32 [rows] of mean 1.
        gains: float32 [n_features], the layer's weight that is in each feature. Standardization
            takes it out again, so it is multiplied in once more behind that.
        classes: how many.
        noise: float32 [any, n_features], what another engine's features differ by, gains in it.
        workers: members that train at once.
        progress: told how many members are trained, and of how many.

    Returns:
        The dense layers, ReLU between them.
    """
    measured = Standardizer.fit(features)
    standardizer = Standardizer(measured.mean, measured.scale / gains)
    inputs = torch.from_numpy(standardizer.apply(features))
    targets, weights = torch.from_numpy(labels), torch.from_numpy(row_weights)
    moves = None if noise is None else torch.from_numpy(noise / standardizer.scale)

    def member(index: int) -> tuple[Dense, ...]:
        generator = torch.Generator().manual_seed(seed * 1000 + index)
        return _train_member(inputs, targets, weights, moves, classes, config, generator)

    members: list[tuple[Dense, ...]] = []
    progress(0, config.members)
    with worker_pool(workers) as pool:
        for trained in pool.map(member, range(config.members)):
            members.append(trained)
            progress(len(members), config.members)
    return fold_standardizer(fold_members(members), standardizer)


def fit_head(
    features: FeatureSet,
    layers: Sequence[LayerSelection],
    config: HeadConfig,
    *,
    rows: NDArray[np.bool_] | None = None,
    seed: int,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Dense, ...]:
    """Train a head that reads `layers`.

    Args:
        rows: bool [rows], a mask of those to train on; None takes all.
        workers, progress: as `train_head` has them.

    Returns:
        The dense layers, ReLU between them.
    """
    taken = slice(None) if rows is None else rows
    return train_head(
        gather(features.pooled, layers, rows),
        features.labels[taken],
        balanced_weights(features, config.balance, rows),
        gains(layers),
        len(features.classes),
        config,
        noise=None if features.noise is None else gather(features.noise, layers),
        seed=seed,
        workers=workers,
        progress=progress,
    )


def head_logits(head: Sequence[Dense], features: FloatArray) -> FloatArray:
    """Return the logits, float32 [rows, classes], of `features`, float32 [rows, n_features]."""
    hidden = features
    for layer in head[:-1]:
        hidden = np.maximum(hidden @ layer.weight.T + layer.bias, 0)
    logits: FloatArray = hidden @ head[-1].weight.T + head[-1].bias
    return logits


def fold_members(members: Sequence[Sequence[Dense]]) -> tuple[Dense, ...]:
    """Return one MLP whose logits are the mean of those of `members`, all of one shape."""
    if len(members) == 1:
        return tuple(members[0])
    first, *_, last = stacked = list(zip(*members, strict=True))
    folded = [
        Dense(
            np.concatenate([part.weight for part in first]),
            np.concatenate([part.bias for part in first]),
        )
    ]
    folded += [
        Dense(
            _block_diagonal([part.weight for part in parts]),
            np.concatenate([part.bias for part in parts]),
        )
        for parts in stacked[1:-1]
    ]
    share = np.float32(1 / len(members))
    folded.append(
        Dense(
            share * np.concatenate([part.weight for part in last], axis=1),
            share * np.sum([part.bias for part in last], axis=0, dtype=np.float32),
        )
    )
    return tuple(folded)


def fold_standardizer(head: Sequence[Dense], standardizer: Standardizer) -> tuple[Dense, ...]:
    """Return the head that takes raw features where `head` takes standardized ones."""
    first, *rest = head
    weight = first.weight.astype(np.float64) / standardizer.scale
    bias = first.bias - weight @ standardizer.mean
    return (Dense(weight.astype(np.float32), bias.astype(np.float32)), *rest)


def _block_diagonal(blocks: Sequence[FloatArray]) -> FloatArray:
    height, width = blocks[0].shape
    matrix = np.zeros((height * len(blocks), width * len(blocks)), np.float32)
    for index, block in enumerate(blocks):
        matrix[index * height : (index + 1) * height, index * width : (index + 1) * width] = block
    return matrix


def _train_member(
    inputs: Tensor,
    targets: Tensor,
    row_weights: Tensor,
    noise: Tensor | None,
    classes: int,
    config: HeadConfig,
    generator: torch.Generator,
) -> tuple[Dense, ...]:
    layers = _make_layers([inputs.shape[1], *config.hidden, classes], generator)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    optimizer = torch.optim.Adam(
        parameters, config.learning_rate, weight_decay=config.weight_decay, foreach=True
    )
    rows = len(inputs)
    steps = config.epochs * -(-rows // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        config.learning_rate,
        total_steps=steps,
        pct_start=max(_WARM_UP, 2 / steps),  # a rise needs two steps
    )
    for _ in range(config.epochs):
        for batch in torch.randperm(rows, generator=generator).split(config.batch_size):
            taken = inputs[batch]
            if noise is not None:
                taken = torch.cat([taken, _noisy(taken, noise, generator)])
            logits = _forward(layers, taken, len(batch), config, generator)
            losses = _losses(logits[: len(batch)], targets[batch])
            loss = (losses * row_weights[batch]).mean()
            if noise is not None:
                loss = loss + _NOISE_WEIGHT * _moved(logits, len(batch), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return tuple(
        Dense(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy())
        for layer in layers
    )


def _noisy(rows: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    """The first of `rows`, one of `_NOISY_SHARE`, with some noise of either sign added."""
    count = -(-len(rows) // _NOISY_SHARE)
    drawn = torch.randint(len(noise), (count,), generator=generator)
    signs = torch.randint(2, (count, 1), generator=generator) * 2 - 1
    return rows[:count] + signs * noise[drawn]


def _forward(
    layers: Sequence[nn.Linear],
    inputs: Tensor,
    rows: int,
    config: HeadConfig,
    generator: torch.Generator,
) -> Tensor:
    """The logits of the first `rows` inputs, and of noisy ones, which are the first again: they
    have the same dropped.
    """
    hidden = _dropout(inputs, rows, config.input_dropout, generator)
    for layer in layers[:-1]:
        hidden = _dropout(torch.relu(layer(hidden)), rows, config.dropout, generator)
    logits: Tensor = layers[-1](hidden)
    return logits


def _moved(logits: Tensor, rows: int, targets: Tensor) -> Tensor:
    """The mean square of what noise moves: of two classes the one's logit over the other's, of
    labels each one's. More classes count by their logits' distances from the mean.
    """
    moves = logits[rows:] - logits[: len(logits) - rows]
    if targets.dim() == 1:
        moves = moves - moves.mean(dim=1, keepdim=True)
        return 2 * moves.square().sum(dim=1).mean()
    return moves.square().mean()


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each row: of its class, or the mean over its labels."""
    if targets.dim() == 1:
        return nn.functional.cross_entropy(logits, targets, reduction="none")
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), reduction="none"
    )
    return losses.mean(dim=1)


def _make_layers(dims: Sequence[int], generator: torch.Generator) -> list[nn.Linear]:
    """Return layers that start as nn.Linear starts its own, but drawn from `generator`."""
    layers = []
    for width, height in pairwise(dims):
        layer = nn.utils.skip_init(nn.Linear, width, height)
        bound = width**-0.5
        with torch.no_grad():
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
        layers.append(layer)
    return layers


def _dropout(values: Tensor, rows: int, rate: float, generator: torch.Generator) -> Tensor:
    """Drop of the first `rows`; rows behind these have dropped what the first of them have."""
    if rate == 0:
        return values
    kept = torch.rand((rows, values.shape[1]), generator=generator) >= rate
    kept = torch.cat([kept, kept[: len(values) - rows]])
    return values * kept / (1 - rate)
