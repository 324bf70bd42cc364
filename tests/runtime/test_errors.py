"""Errors cross the borders of processes: a pool of workers pickles them."""

import copy
import pickle
from collections.abc import Iterator

import pytest

from siren_runtime.errors import BusyError, SirenError

MADE_OF = {BusyError: ("the queue is full", 1.5)}


def kinds(base: type[SirenError] = SirenError) -> Iterator[type[SirenError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


@pytest.mark.parametrize("kind", sorted({*kinds()}, key=str), ids=lambda kind: kind.__name__)
def test_an_error_survives_being_pickled(kind: type[SirenError]) -> None:
    error = kind(*MADE_OF.get(kind, ("guard.json: no threshold",)))
    error.add_note("while a test ran")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert (str(again), vars(again)) == (str(error), vars(error))
