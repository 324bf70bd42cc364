"""What decided is what answers tell: a span where it did, and no low score beside a verdict."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from served import Running, running
from siren_runtime import Guard
from siren_serve.proxy.policy import worst_of
from tiny_bundle import HARM, MAX_LENGTH, edit_manifest, make_alarm

HIDDEN = "a" * 10 + HARM * 8 + "a" * 10  # one span of it is harmful
OPEN = (HARM + "a") * 3  # harmful as a whole, and no longer than a span


@pytest.fixture(scope="module")
def alarm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose score is that of the share of z, with a threshold of spans."""
    bundle = make_alarm(tmp_path_factory.mktemp("alarm") / "bundle", 8)
    own = {"threshold": 0.95, "spans": [{"tokens": 8, "threshold": 0.96}]}
    edit_manifest(bundle, lambda manifest: manifest.update(own))
    return bundle


@pytest.fixture(scope="module")
def spanned(alarm: Path) -> Iterator[Running]:
    with running({"alarm": str(alarm)}) as server:
        yield server


def test_litellm_is_told_of_the_riskiest_text_what_decides(spanned: Running, alarm: Path) -> None:
    with Guard.load(alarm, threads=1) as guard:
        whole, part = guard.score(OPEN), guard.score(HIDDEN)
    assert whole.is_harmful
    assert part.score < whole.score < part.risk
    asked = {"texts": [OPEN, HIDDEN], "input_type": "request"}
    answer = spanned.client.post("/beta/litellm_basic_guardrail_api", json=asked).json()
    said = f"score {part.spans[0].score:.4f} of threshold 0.96 in 8 tokens of it"
    assert answer["blocked_reason"] == f"harmful: {said}"


def test_of_several_verdicts_the_riskiest_is_told_beside_an_answer(alarm: Path) -> None:
    with Guard.load(alarm, threads=1) as guard:
        safe, whole, part = guard.score_batch(["a", OPEN, HIDDEN])
    assert worst_of([safe, whole, None, part]) is part


def test_scores_of_answers_without_spans_stand_where_the_verdict_does(spanned: Running) -> None:
    (found,) = spanned.client.post("/v1/moderations", json={"input": HIDDEN}).json()["results"]
    assert found["flagged"]
    assert found["category_scores"]["harmful"] >= 0.95
    body = {"instances": [HIDDEN]}
    (told,) = spanned.client.post("/v1/models/alarm:predict", json=body).json()["predictions"]
    assert told["score"] < told["threshold"] <= told["risk"]
    assert told["is_harmful"] == 1


@pytest.mark.parametrize(("long_text", "label"), [("windows", "harmful"), ("truncate", "safe")])
def test_a_client_that_asks_to_truncate_has_all_of_a_text_read(
    alarm: Path, long_text: str, label: str
) -> None:
    text = "a" * 3 * MAX_LENGTH + HARM * MAX_LENGTH
    with running({"alarm": str(alarm)}, long_text=long_text, spans=False) as server:
        asked = {"inputs": text, "truncate": True}
        assert server.client.post("/predict", json=asked).json()[0]["label"] == "harmful"
        as_started = server.client.post("/predict", json={"inputs": text}).json()
    assert as_started[0]["label"] == label
