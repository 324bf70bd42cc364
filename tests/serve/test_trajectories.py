"""A guard of trajectories behind HTTP: its own route, and clear errors on those for texts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from served import Running, running
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard, InputError
from siren_serve.triton.repository import ModelSettings, write_model
from trajectories import CHATML, MESSAGES, TOOLS, UNREAD, make_chat_backbone, make_trajectory_head

ROUNDING = 1e-5
ROUTE = "/v1/trajectories"


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Path:
    folder = tmp_path_factory.mktemp("trajectories")
    chat = make_chat_backbone(folder / "chat", backbone_folder("qwen3"), CHATML)
    artifact = load_artifact(make_trajectory_head(folder / "head", chat))
    export_bundle(artifact, load_checkpoint(chat), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Running]:
    with running({"agent": str(bundle)}) as served:
        yield served


def test_one_trajectory_and_several_are_scored(server: Running, bundle: Path) -> None:
    guard = Guard.load(bundle, threads=1)
    expected = guard.score_trajectory(messages=MESSAGES, tools=TOOLS)
    answer = server.client.post(ROUTE, json={"messages": MESSAGES, "tools": TOOLS}).json()
    assert answer["score"] == pytest.approx(expected.score, abs=ROUNDING)
    assert (answer["model"], answer["tokens"], answer["truncated"]) == (
        "agent",
        expected.tokens,
        True,
    )
    assert answer["omitted"] == [*expected.omitted]
    assert answer["unread"] == UNREAD
    inputs = [{"messages": MESSAGES[:3]}, {"messages": [{"role": "critic"}]}]
    refusals = 'siren_refusals_total{code="cannot_be_scored"}'
    before = server.metric(refusals)
    first, bad = server.client.post(ROUTE, json={"inputs": inputs, "threshold": 0}).json()[
        "results"
    ]
    assert first["score"] == pytest.approx(guard.score_trajectory(MESSAGES[:3]).score, abs=ROUNDING)
    assert first["is_harmful"]
    assert "'critic'" in bad["error"]["message"]
    assert server.metric(refusals) == before + 1


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({}, "give messages"),
        ({"messages": MESSAGES, "inputs": []}, "give messages"),
        ({"inputs": [], "tools": []}, "give messages"),
        ({"inputs": []}, "there is no"),
        ({"messages": []}, "no turn"),
        ({"messages": [{"role": "critic"}]}, "'critic'"),
        ({"messages": MESSAGES, "long_text": "windows"}, "long_text"),
        ({"messages": "hello"}, "messages"),
    ],
)
def test_what_is_no_trajectory_is_refused(server: Running, body: object, match: str) -> None:
    answer = server.client.post(ROUTE, json=body)
    assert answer.status_code in (400, 422)
    assert match in answer.json()["error"]["message"]


def test_routes_of_texts_say_what_the_guard_scores(server: Running) -> None:
    for route, body in (
        ("/v1/score", {"text": "hello"}),
        ("/v1/score", {"messages": [{"role": "user", "content": "hello"}]}),
        ("/v1/moderations", {"input": "hello"}),
        ("/predict", {"inputs": "hello"}),
        ("/classify", {"input": "hello"}),
        ("/v1/streams", {}),
    ):
        answer = server.client.post(route, json=body)
        assert answer.status_code == 422
        assert "scores trajectories of agents, and no texts" in answer.text


def test_triton_takes_no_guard_of_trajectories(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scores trajectories"):
        write_model(bundle, tmp_path, "guard", "text", ModelSettings())
