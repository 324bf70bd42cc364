"""Thresholds of spans that a bundle carries decide over HTTP without being asked for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from served import running
from siren_runtime import Guard
from tiny_bundle import edit_manifest

TEXT = "Bake bread. The sea is near! Who knows why.\nGo home, and take the bread with you."


@pytest.mark.parametrize("name", ["qwen3", "bert"])
@pytest.mark.parametrize("flagged", [True, False])
def test_a_calibrated_span_decides_the_verdict(
    name: str, flagged: bool, export: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = shutil.copytree(export(name, max_length=128).bundle, tmp_path / "bundle")
    with Guard.load(bundle, threads=1, spans=[8]) as guard:
        found = guard.score(TEXT)
    of_span = found.spans[0].score
    threshold = of_span + (-0.01 if flagged else 0.01)
    decides = {"threshold": 0.99, "spans": [{"tokens": 8, "threshold": threshold}]}
    edit_manifest(bundle, lambda manifest: manifest.update(decides))
    assert found.score < 0.98
    with running({"guard": str(bundle)}, threads=1) as server:
        answer = server.client.post("/v1/score", json={"text": TEXT}).json()
        plain = server.client.post("/v1/score", json={"text": TEXT, "spans": False}).json()
        body = {"input": TEXT, "model": "guard"}
        (moderation,) = server.client.post("/v1/moderations", json=body).json()["results"]
    assert answer["is_harmful"] is moderation["flagged"] is flagged
    assert answer["score"] == pytest.approx(found.score, abs=1e-5)
    (span,) = answer["spans"]
    assert span["score"] == pytest.approx(of_span, abs=1e-5)
    assert plain["is_harmful"] is False
    assert "spans" not in plain


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_a_stream_over_http_ends_as_a_stream_does(
    name: str, export: Callable[..., Any], tmp_path: Path
) -> None:
    """The last sentence has no mark, and its span counts when the text ends."""
    text = "Bake bread. The sea is near! Go home, and take the bread with you all"
    bundle = shutil.copytree(export(name, max_length=128).bundle, tmp_path / "bundle")
    edit_manifest(bundle, lambda m: m.update(spans=[{"tokens": 16, "threshold": 0.5}]))
    with Guard.load(bundle, threads=1) as guard, guard.stream() as stream:
        unended = [list(one.span) for one in stream.feed(text).spans]
        (expected,) = stream.feed("", last=True).spans
    with running({"guard": str(bundle)}, threads=1, unreadable="review") as server:
        path = f"/v1/streams/{server.client.post('/v1/streams', json={}).json()['id']}"
        before = server.client.post(path, json={"text": text}).json()
        ended = server.client.post(path, json={"text": "", "last": True}).json()
        url = server.url.replace("http", "ws", 1) + "/v1/stream"
        with connect(url) as socket:
            socket.send("{}")
            socket.recv()
            socket.send(json.dumps({"text": text, "end": True}))
            at_once = json.loads(socket.recv())
    (span,), (other,) = ended["spans"], at_once["spans"]
    assert span["score"] == other["score"] == pytest.approx(expected.score, abs=1e-5)
    assert tuple(span["span"]) == expected.span
    assert [one["span"] for one in before.get("spans", [])] == unended
