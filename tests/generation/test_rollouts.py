"""A generator served on this machine goes on from prefixes, for siren rollouts."""

from pathlib import Path

import pytest

from served import running
from siren_runtime import BackendError, GuardedGenerator, Sampling
from siren_serve.settings import GenerateSettings
from siren_train.rollouts.endpoint import Endpoint
from siren_train.rollouts.generator import Sampling as Asked

PROMPT, PREFIX, TOKENS = "The history of bread begins", "with flour", 6


def test_a_served_generator_goes_on_with_the_prefix(
    grafted: Path, guarded: GuardedGenerator
) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    options = {"max_tokens": TOKENS, "sampling": Sampling(temperature=0), "threshold": 1.0}
    begun = [*messages, {"role": "assistant", "content": PREFIX}]
    settings = GenerateSettings(folder=str(grafted), name="tiny", threshold=1.0)
    with running({}, generate=settings) as server:
        endpoint = Endpoint(f"{server.url}/v1", Asked("tiny", "chat", TOKENS, 0.0))
        expected = guarded.generate(begun, continue_last=True, **options)  # type: ignore[arg-type]
        assert endpoint.go_on(PROMPT, PREFIX, 0) == "".join(piece.text for piece in expected)
        expected = guarded.generate(messages, **options)  # type: ignore[arg-type]
        assert endpoint.go_on(PROMPT, "", 0) == "".join(piece.text for piece in expected)


def test_a_generator_that_filters_makes_no_targets(grafted: Path) -> None:
    settings = GenerateSettings(folder=str(grafted), name="tiny", threshold=0.0)
    with running({}, generate=settings) as server:
        endpoint = Endpoint(f"{server.url}/v1", Asked("tiny", "chat", TOKENS, 0.0))
        with pytest.raises(BackendError, match=r"status 400.*blocked as harmful"):
            endpoint.go_on(PROMPT, PREFIX, 0)
