"""Which spans of an encoder's window are read by themselves."""

import numpy as np
import pytest

from siren_runtime.backends.promising import promising
from siren_runtime.text.spans import Cut


def cut(start, stop, size=64):
    return Cut(size, start, stop, (start, stop))


STEPS = [cut(start, start + 64) for start in range(0, 449, 32)]  # of a window of 512 tokens


def chosen(cuts, scores, tokens=256):
    scores = np.array(scores, dtype=float).reshape(len(cuts), -1)
    return [cuts.index(one) for one in promising(cuts, scores, tokens)]


def test_twice_as_many_tokens_as_the_window_has_are_read_again():
    scores = np.linspace(0, 1, len(STEPS))
    assert chosen(STEPS, scores) == [*range(7, 15)]  # neighbours have a third in common


def test_the_promising_come_first_and_stand_in_the_order_of_the_text():
    scores = np.zeros(len(STEPS))
    scores[[3, 9]] = 0.9, 0.8
    found = chosen(STEPS, scores)
    assert {3, 9} < {*found}
    assert found == sorted(found)


def test_of_spans_that_are_mostly_the_same_one_is_read():
    nearly = [cut(0, 64), cut(4, 68), cut(200, 264), cut(204, 268)]
    assert chosen(nearly, [0.9, 0.8, 0.1, 0.2]) == [0, 3]


def test_each_size_has_room_of_its_own():
    """Their scores are held against different thresholds."""
    short = [cut(start, start + 32, 32) for start in range(0, 481, 16)]
    scores = [*np.linspace(0.5, 1, len(STEPS)), *np.linspace(0, 0.4, len(short))]
    found = chosen([*STEPS, *short], scores)
    assert [n for n in found if n < len(STEPS)] == [*range(7, 15)]
    assert len(found) == 8 + 16


def test_the_highest_of_each_size_is_read_however_little_room_there_is():
    sizes = [cut(0, 32, 32), cut(32, 64, 32), cut(0, 64, 64), cut(6, 70, 64)]
    assert chosen(sizes, [0.2, 0.1, 0.3, 0.4], tokens=20) == [0, 3]


def test_each_head_has_spans_of_its_own():
    """What one head finds harmful another need not."""
    scores = np.zeros((len(STEPS), 2))
    scores[0, 0] = scores[14, 1] = 0.9
    alone = chosen(STEPS, scores[:, :1], tokens=32)
    assert alone == [0]
    assert chosen(STEPS, scores, tokens=32) == [0, 14]


@pytest.mark.parametrize("seed", range(20))
def test_as_many_are_read_as_there_is_room_for(seed):
    random = np.random.default_rng(seed)
    starts = random.integers(0, 450, 40)
    cuts = [cut(int(a), int(a + random.integers(8, 65))) for a in starts]
    scores = random.random(40)
    best, found = int(scores.argmax()), chosen(cuts, scores)
    assert best in found
    assert sum(cuts[n].length for n in found) <= 512
    room = 512 - sum(cuts[n].length for n in found)
    for n in {*range(40)} - {*found}:
        same = [
            len({*range(a.start, a.stop)} & {*range(cuts[n].start, cuts[n].stop)})
            > len({*range(a.start, a.stop)} | {*range(cuts[n].start, cuts[n].stop)}) / 2
            for a in (cuts[m] for m in found)
        ]
        assert cuts[n].length > room or any(same)
