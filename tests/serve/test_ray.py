# ruff: noqa: E402
"""A guard on a local Ray: scripts/test-ray makes the environment."""

import json
import os
from pathlib import Path

import httpx
import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="scripts/test-ray installs Ray")

from ray import serve
from websockets.sync.client import connect

from siren_runtime import Guard
from siren_runtime.errors import InputError
from siren_serve.ray import BatchScorer, guard_deployment
from siren_serve.settings import ProxySettings
from tiny_bundle import make_bundle

PORT = 18800 + os.getpid() % 900
TEXTS = ["a text", "Ωmega", "and one more that is longer", "a text"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("guard") / "bundle", scale=2.0)


@pytest.fixture(scope="module")
def guard(bundle):
    return Guard.load(bundle, threads=1)


@pytest.fixture(scope="module")
def cluster():
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    environment = {"PYTHONPATH": ":".join(str(Path(path).resolve()) for path in paths)}
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": environment},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def handle(cluster, bundle):
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    deployment = guard_deployment({"tiny": str(bundle)}, max_texts=4)
    yield serve.run(deployment.options(num_replicas=2, ray_actor_options={"num_cpus": 1}).bind())
    serve.shutdown()


@pytest.fixture
def client(handle):
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client:
        yield client


def test_replicas_answer_as_the_server_does(client, guard):
    processes = set()
    for text in TEXTS * 5:
        answer = client.post("/v1/score", json={"text": text}).json()
        assert answer["score"] == pytest.approx(guard.score(text).score, abs=1e-6)
        processes.add(client.get("/info").json()["process"])
    assert len(processes) == 2
    assert client.get("/health/ready").status_code == 200
    assert client.post("/v1/moderations", json={"input": "a"}).status_code == 200
    assert client.post("/v1/score", json={"inputs": ["a"] * 5}).status_code == 413


def test_a_websocket_is_a_stream(handle, guard):
    with connect(f"ws://127.0.0.1:{PORT}/v1/stream") as socket, guard.stream() as stream:
        socket.send("{}")
        socket.recv()
        for piece in ("Once", " upon a time"):
            socket.send(json.dumps({"text": piece}))
            score = json.loads(socket.recv())["score"]
            assert score == pytest.approx(stream.feed(piece).score, abs=1e-6)


def test_a_handle_scores(handle, guard):
    asked = [handle.score.remote(text) for text in TEXTS]
    for text, one in zip(TEXTS, asked, strict=True):
        assert one.result()["score"] == pytest.approx(guard.score(text).score, abs=1e-6)
    pair = handle.score.remote(prompt="hello", response="ok").result()
    expected = guard.score(prompt="hello", response="ok").score
    assert pair["score"] == pytest.approx(expected, abs=1e-6)
    many = handle.score_batch.remote(TEXTS).result()
    assert [one["tokens"] for one in many] == [guard.score(text).tokens for text in TEXTS]


def test_what_cannot_be_scored_raises_over_a_handle(handle):
    with pytest.raises(Exception, match="tokens"):
        handle.score.remote("a" * 17_000).result()
    with pytest.raises(Exception, match="no guard 'other'"):
        handle.score.remote("a", model="other").result()
    for beside in ({"prompt": "b"}, {"response": "b"}):
        with pytest.raises(Exception, match="not both"):
            handle.score.remote("a", **beside).result()
    with pytest.raises(Exception, match="5 texts in one request, at most 4"):
        handle.score_batch.remote(["a"] * 5).result()


def test_a_setting_that_is_not_known_is_refused(bundle):
    with pytest.raises(TypeError, match="thread"):
        guard_deployment(str(bundle), thread=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout_s": "ten"}, "timeout_s"),
        ({"spans": "no"}, "spans"),
        ({"unreadable": "revew"}, "revew"),
        ({"workers": 2}, "workers: a replica does not listen"),
        ({"send_timeout_s": 9.0}, "send_timeout_s: a replica does not listen"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(bundle, settings, message):
    with pytest.raises(InputError, match=message):
        guard_deployment(str(bundle), **settings)


def test_settings_of_every_type_are_taken(bundle, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a-key-that-is-long-enough\n")
    proxy = ProxySettings(upstream="http://localhost:1/v1", key_file=keys)
    guard_deployment({"tiny": bundle}, timeout_s=5, keys_file=keys, proxy=proxy, spans=None)


def test_a_data_set_gets_the_guards_scores(cluster, bundle, guard):
    texts = [f"text number {n}" for n in range(200)]
    scored = ray.data.from_items([{"text": text, "id": n} for n, text in enumerate(texts)])
    scored = scored.map_batches(
        BatchScorer, fn_constructor_args=(str(bundle),), concurrency=2, num_cpus=1, batch_size=32
    )
    rows = sorted(scored.take_all(), key=lambda row: row["id"])
    expected = guard.score_batch(texts)
    np.testing.assert_allclose([r["score"] for r in rows], [r.score for r in expected], atol=1e-6)
    assert [row["is_harmful"] for row in rows] == [r.is_harmful for r in expected]
    assert [row["text"] for row in rows] == texts


def test_a_text_without_a_verdict_ends_the_job_unless_asked_otherwise(bundle):
    batch = {"said": np.array(["a text", "a" * 17_000], np.object_)}
    with pytest.raises(InputError, match="errors must be one of raise, column"):
        BatchScorer(str(bundle), "said", errors="columns")
    with pytest.raises(ValueError, match="tokens"):
        BatchScorer(str(bundle), "said")(batch)
    found = BatchScorer(str(bundle), "said", errors="column")(batch)
    assert np.isfinite(found["score"][0])
    assert np.isnan(found["score"][1])
    assert found["is_harmful"][1] is None
    assert found["error"][0] is None
    assert "tokens" in found["error"][1]
