"""KServe's protocols: Triton's client and others get verdicts, and what is not known is refused."""

from typing import Any

import numpy as np
import pytest
from tritonclient import http as triton

from served import Running
from siren_runtime import Guard
from texts import CORPUS

ROUNDING = 1e-6
TEXTS = [text for text in CORPUS if text.strip()][:6]


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_infers(server: Running, guard: Guard, binary: bool) -> None:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.get_model_metadata("tiny")["inputs"][0]["datatype"] == "BYTES"
        given = triton.InferInput("text", [len(TEXTS), 1], "BYTES")
        data = np.array([[text.encode()] for text in TEXTS], dtype=object)
        given.set_data_from_numpy(data, binary_data=binary)
        wanted = [triton.InferRequestedOutput(name) for name in ("score", "is_harmful")]
        for outputs in (None, wanted):
            answer = client.infer("tiny", [given], outputs=outputs, request_id="7", timeout=9)
        assert answer.get_response()["id"] == "7"
        expected = [guard.score(text) for text in TEXTS]
        scores, harmful = answer.as_numpy("score"), answer.as_numpy("is_harmful")
        assert scores.shape == (len(TEXTS), 1)
        assert scores[:, 0] == pytest.approx([r.score for r in expected], abs=ROUNDING)
        assert harmful[:, 0].tolist() == [r.is_harmful for r in expected]
        with pytest.raises(Exception, match="only tiny, other"):
            client.infer("third", [given])


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("request", "threshold"),
        ("request", "sequence_id"),
        ("input", "truncate"),
        ("input", "shared_memory_region"),
        ("output", "classification"),
    ],
)
def test_a_parameter_of_kserve_that_is_not_known_is_refused_by_name(
    server: Running, place: str, name: str
) -> None:
    given = {"parameters": {name: 1}}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    asked: dict[str, Any] = {
        "inputs": [tensor | (given if place == "input" else {})],
        "outputs": [{"name": "score"} | (given if place == "output" else {})],
        **(given if place == "request" else {}),
    }
    answer = server.client.post("/v2/models/tiny/infer", json=asked)
    assert answer.status_code == 422
    assert f"`{name}`" in answer.json()["error"]


def test_text_may_say_that_it_is_text_and_nothing_else(server: Running, guard: Guard) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="]}
    for kind, status in (("str", 200), ("base64", 422)):
        given = {"parameters": {"content_type": kind}}
        asked = {"inputs": [tensor | given], **given}
        answer = server.client.post("/v2/models/tiny/infer", json=asked)
        assert answer.status_code == status
        if status == 200:
            (score,) = answer.json()["outputs"][0]["data"]
            assert score == pytest.approx(guard.score("aGVsbG8=").score, abs=ROUNDING)


def test_predict_of_the_first_version_answers(server: Running, guard: Guard) -> None:
    answer = server.client.post("/v1/models/tiny:predict", json={"instances": TEXTS[:2]})
    expected = [guard.score(text) for text in TEXTS[:2]]
    assert answer.json()["predictions"] == [  # numbers alone, as NeMo Guardrails reads them
        {
            "score": pytest.approx(result.score, abs=ROUNDING),
            "risk": pytest.approx(result.risk, abs=ROUNDING),
            "is_harmful": float(bool(result.is_harmful)),
            "threshold": result.threshold,
        }
        for result in expected
    ]


@pytest.mark.parametrize(
    "length", ["null", "NULL", "", "+9", "-1", "1_0", "9.0", "0x9", "9" * 5000]
)
def test_a_length_of_kserves_json_that_is_no_whole_number_is_refused(
    server: Running, length: str
) -> None:
    tensor = '{"name": "text", "datatype": "BYTES", "shape": [1]'
    answer = server.client.post(
        "/v2/models/tiny/infer",
        content=f'{{"inputs": [{tensor}, "data": ["a"], "data": ["b"]}}]}}',
        headers={"Inference-Header-Content-Length": length},
    )
    assert answer.status_code == 422
    assert "Inference-Header-Content-Length once" in answer.json()["error"]


def test_a_length_of_kserves_json_stands_once_and_within_the_body(server: Running) -> None:
    tensor = '{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}'
    body = f'{{"inputs": [{tensor}]}}'
    name, size = "Inference-Header-Content-Length", str(len(body))
    for headers, status in (
        ([(name, size)], 200),
        ([(name, size), (name, size)], 422),
        ([(name, str(len(body) + 1))], 422),
        ([(name, "0")], 400),
    ):
        answer = server.client.post("/v2/models/tiny/infer", content=body, headers=headers)
        assert answer.status_code == status, headers
