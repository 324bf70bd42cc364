"""The OpenAPI document of siren serve --generate."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from described import answer_as_described, operation_at, sent_to_all
from served import Running, running
from siren_serve.generation import ChatRequest
from siren_serve.openapi import Verdict
from siren_serve.settings import GenerateSettings

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(grafted: Path) -> Iterator[Running]:
    settings = GenerateSettings(folder=str(grafted), name="tiny", threshold=1.0, max_tokens=2)
    with running({}, generate=settings) as served:
        yield served


def test_no_request_for_an_answer_makes_the_server_fail(server: Running) -> None:
    paths = {CHAT, "/v1/models", "/v1/models/{name}"}
    assert sent_to_all(server, paths) == paths


def test_the_document_says_what_is_read_of_a_request(server: Running) -> None:
    operation = operation_at(server, CHAT)
    assert {*operation["body"]["properties"]} == {*ChatRequest.__struct_fields__}
    statuses = {"200", "400", "413", "422", "429", "503", "504", "default"}
    assert {*operation["responses"]} == statuses
    assert "/v1/completions" not in server.client.get("/openapi.json").json()["paths"]


def test_what_is_written_beside_an_answer_is_in_the_document(server: Running) -> None:
    asked = {"messages": [{"role": "user", "content": "Bread"}]}
    answer = msgspec.json.decode(answer_as_described(server, CHAT, asked))
    verdict = answer["choices"][0]["siren"]
    msgspec.convert(verdict, Verdict)
    assert {"prompt", "score"} < {*verdict} <= {*Verdict.__struct_fields__}
    assert {*verdict["prompt"]} <= {*Verdict.__struct_fields__}
