"""Pack texts of mixed length into batches that waste little on padding."""

from collections.abc import Iterator, Sequence

import numpy as np

from .outputs import TokenArray


def micro_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Yield the indices of `lengths` in batches, sorted by length.

    A batch of `n` texts costs `n` times its longest, padding included; that stays within
    `token_budget`, unless one text alone exceeds it.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def right_pad(sequences: Sequence[Sequence[int]]) -> tuple[TokenArray, TokenArray]:
    """Return `input_ids` and `attention_mask`, both int64 [batch, sequence].

    Padding is token 0: which one it is does not matter, since the mask keeps it out.
    """
    shape = len(sequences), max(map(len, sequences))
    input_ids, attention_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
        attention_mask[row, : len(sequence)] = 1
    return input_ids, attention_mask
