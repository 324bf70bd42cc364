"""What is raised in a server, and may come from one of its processes."""

import pickle

import pytest

from siren_serve.errors import RefusedRequest
from siren_serve.proxy.upstream import UpstreamRefusal


@pytest.mark.parametrize(
    "error",
    [
        RefusedRequest(429, "busy", "too much waits", {"Retry-After": "2"}),
        UpstreamRefusal(429, {"retry-after": "2"}, {"message": "slow down"}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_survives_being_pickled(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))
