"""What the tests of streaming share."""

import numpy as np

BOUND = 1e-5
LIMIT = 128  # tokens; the context of the tiny backbones


def neurons_of(guard, ids):
    """The selected neurons of each token [tokens, n_features]."""
    backend = guard.scorers[0].stream_backend
    cache = backend.cache
    past = [np.zeros((1, cache.heads, 1, cache.dim), np.float32)] * cache.buffers
    none = np.zeros((1, backend.head_spec.features), np.float32)
    zero = np.zeros(1, np.int64)
    sums = backend.step(np.array([ids]), zero, past, none, zero).feature_sums[0]
    return np.diff(sums, axis=0, prepend=np.float32(0))


def cut(text, rng, most=12):
    """Cut a text into pieces at random places, single characters often."""
    pieces, start = [], 0
    while start < len(text):
        length = int(rng.choice([1, 1, 2, 3, most]))
        pieces.append(text[start : start + length])
        start += length
    return pieces
