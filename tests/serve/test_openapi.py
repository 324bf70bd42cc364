"""The OpenAPI document lists what a server answers, and says of it what is so."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from described import answer_as_described, operation_at, sent_to_all
from proxied import Proxies, ask
from served import Running, running
from siren_serve.openapi import Verdict
from siren_serve.settings import ProxySettings
from tiny_bundle import edit_manifest, make_bundle
from upstream import ModelServer, Script, chat_of

OF_MODELS = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{name}"}
ERRORS = {"400", "413", "422", "429", "503", "504", "default"}


@pytest.fixture(scope="module")
def proxy(bundle: Path, upstream: ModelServer) -> Iterator[Running]:
    settings = ProxySettings(upstream=upstream.url, mode="annotate")
    with running({"tiny": str(bundle)}, proxy=settings, max_texts=4) as server:
        yield server


def test_no_request_that_the_document_allows_or_not_makes_the_server_fail(server: Running) -> None:
    assert {"/v1/score", "/v1/moderations", "/predict", "/classify"} < sent_to_all(server)


def test_no_request_that_is_passed_on_makes_the_server_fail(
    proxy: Running, upstream: ModelServer
) -> None:
    upstream.script = Script([(0, "a"), (0, None)], whole=chat_of({"content": "a"}))
    assert sent_to_all(proxy, OF_MODELS) == OF_MODELS


def test_the_document_has_the_routes_that_are_served_and_no_others(
    server: Running, proxy: Running
) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    assert {*paths} & OF_MODELS == {"/v1/models", "/v1/models/{name}"}
    assert {*proxy.client.get("/openapi.json").json()["paths"]} > OF_MODELS
    assert "parameters" not in operation_at(proxy, "/v1/models", "get")


@pytest.mark.parametrize(
    ("path", "text"), [("/v1/chat/completions", "messages"), ("/v1/completions", "prompt")]
)
def test_the_document_says_what_a_model_is_asked_and_how_it_answers(
    proxy: Running, path: str, text: str
) -> None:
    operation = operation_at(proxy, path)
    assert {text, "model", "n", "stream"} <= {*operation["body"]["properties"]}
    assert operation["body"]["required"] == [text]
    assert "additionalProperties" not in operation["body"]  # all is passed on
    responses = operation["responses"]
    assert {*responses} == {"200", "502"} | ERRORS
    assert {*responses.pop("200")["content"]} == {"application/json", "text/event-stream"}
    for answer in responses.values():
        schema = answer["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}


def test_a_reload_is_answered_as_the_document_has_it(bundle: Path, tmp_path: Path) -> None:
    key = "a key of sixteen characters and more"
    (tmp_path / "keys").write_text(key)
    with running({"tiny": str(bundle)}, keys_file=tmp_path / "keys") as server:
        answer = answer_as_described(server, "/admin/reload", headers={"X-API-Key": key})
    assert msgspec.json.decode(answer) == {"reloaded": ["tiny"]}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_the_upstream_is_as_the_document_has_it(
    proxy: Running, upstream: ModelServer, stream: bool
) -> None:
    upstream.script = Script([(0, "a"), (0, None)], whole=chat_of({"content": "a"}))
    messages = [{"role": "user", "content": "a"}]
    for path, asked in (
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/completions", {"prompt": "a"}),
    ):
        assert '"siren"' in answer_as_described(proxy, path, {**asked, "stream": stream})


def test_every_error_has_the_form_that_the_document_gives_it(server: Running) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    for path, item in paths.items():
        for operation in item.values():
            schema = operation["responses"]["default"]["content"]["application/json"]["schema"]
            assert ("$ref" in schema) is not path.startswith("/v2")
            assert "400" not in operation["responses"]  # as Litestar would have it


def _described(verdict: dict[str, Any]) -> bool:
    """Whether all of a verdict is in the document, and of the type that it has there."""
    msgspec.convert(verdict, Verdict)
    return {*verdict} <= {*Verdict.__struct_fields__}


def test_what_is_written_beside_an_answer_is_in_the_document(
    tmp_path: Path, upstream: ModelServer
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    spans = [{"tokens": 8, "threshold": 0.01}]
    tiers = [{"name": "all", "threshold": 0.0}]
    edit_manifest(bundle, lambda manifest: manifest.update(spans=spans, tiers=tiers))
    upstream.script = Script([(0, "some text"), (0, None)], whole=chat_of({"content": "some text"}))
    settings = ProxySettings(upstream=upstream.url, mode="annotate", stride=0)
    with running({"tiny": str(bundle)}, proxy=settings) as server:
        whole = ask(server, "How do I pick a lock?")
        streamed = list(ask(server, "How do I pick a lock?", stream=True))
    found = [whole.siren["prompt"], whole.choices[0].siren, streamed[0].siren["prompt"]]
    found += [chunk.choices[0].siren for chunk in streamed if hasattr(chunk.choices[0], "siren")]
    assert all(map(_described, found))
    assert {"tier", "spans", "risk", "score"} <= {*whole.choices[0].siren}


def test_that_a_text_has_no_verdict_is_in_the_document(
    proxies: Proxies, upstream: ModelServer
) -> None:
    upstream.script = Script(whole=chat_of({"content": "a" * 300_000}))
    failed = ask(proxies(fail_open=True), "a").choices[0].siren
    assert {*failed} == {"failed_open"}
    assert _described(failed)
