# ruff: noqa: E402
"""A guard's model repository in a real tritonserver, asked by NVIDIA's own client.

scripts/test-triton makes the environment: nvidia-pytriton brings a server for a CPU.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

pytriton = pytest.importorskip("pytriton", reason="scripts/test-triton installs nvidia-pytriton")

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from siren_runtime import Guard
from siren_runtime.backends.batching import right_pad
from siren_serve.triton.repository import ModelSettings, write_model
from tiny_bundle import make_bundle

SERVER = Path(pytriton.__file__).parent / "tritonserver"
# ONNX Runtime as a backend of Triton's that is written in Python; this server has none in C++.
ONNX_RUNTIME = """
import os
import sys
from pathlib import Path

sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"], args["model_version"])
        self.session = onnxruntime.InferenceSession(folder / "model.onnx")

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        names = request.requested_output_names()
        found = self.session.run(names, given)
        tensors = [pb_utils.Tensor(name, value) for name, value in zip(names, found)]
        return pb_utils.InferenceResponse(output_tensors=tensors)
"""
TEXTS = ["a text", "Ωmega", "and one more that is longer", "a text"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("guard") / "bundle", scale=2.0)


@pytest.fixture(scope="module")
def guard(bundle):
    return Guard.load(bundle, threads=1)


@pytest.fixture(scope="module")
def ports(bundle, tmp_path_factory):
    """The HTTP and gRPC ports of a server that is ready."""
    folder = tmp_path_factory.mktemp("triton")
    settings = ModelSettings(max_batch=8, timeout_s=5)
    for form in ("text", "stream", "tokens"):
        name = "guard" if form == "text" else f"guard_{form}"
        write_model(bundle, folder / "models", name, form, settings)
    (folder / "backends" / "onnxruntime").mkdir(parents=True)
    (folder / "backends" / "onnxruntime" / "model.py").write_text(ONNX_RUNTIME)
    backend = folder / "backends" / "python"
    shutil.copytree(SERVER / "backends" / "python", backend)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for stub in (SERVER / "python_backend_stubs" / version).iterdir():
        shutil.copy(stub, backend)
    libraries = SERVER.parents[1] / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")
    paths = [path for path in sys.path if path]
    log = folder / "log"
    chosen = [18500 + 3 * (os.getpid() % 500) + n for n in range(2)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                SERVER / "bin" / "tritonserver",
                f"--model-repository={folder / 'models'}",
                f"--backend-directory={folder / 'backends'}",
                f"--http-port={chosen[0]}",
                f"--grpc-port={chosen[1]}",
                "--allow-metrics=false",
                "--exit-timeout-secs=5",
                "--http-address=127.0.0.1",
            ],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
                "PYTHONPATH": ":".join(paths),
            },
        )
    try:
        end = time.monotonic() + 60
        while not _is_ready(chosen[0]):
            ended = process.poll() is not None or time.monotonic() > end
            assert not ended, log.read_text(errors="replace")
            time.sleep(0.2)
        yield chosen
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200
    except httpx.HTTPError:
        return False


def strings(name, texts, shape=None):
    values = np.array([text.encode() for text in texts], dtype=np.object_)
    values = values.reshape(shape or (len(texts), 1))
    tensor = grpc.InferInput(name, list(values.shape), "BYTES")
    tensor.set_data_from_numpy(values)
    return tensor


@pytest.fixture(scope="module")
def client(ports):
    with grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
        yield client


def verdicts(answer):
    columns = {name: answer.as_numpy(name).reshape(-1) for name in ("score", "is_harmful", "tier")}
    results = [json.loads(result) for result in answer.as_numpy("result").reshape(-1)]
    assert [result["score"] for result in results] == columns["score"].tolist()
    return columns


def test_texts_get_the_guards_own_scores(client, guard):
    answer = client.infer("guard", [strings("text", TEXTS)])
    expected = guard.score_batch(TEXTS)
    found = verdicts(answer)
    np.testing.assert_allclose(found["score"], [r.score for r in expected], atol=1e-6)
    assert found["is_harmful"].tolist() == [r.is_harmful for r in expected]


def test_tokens_get_the_graphs_own_scores(client, guard):
    """Triton's part: the tensors, the batch and the shapes that config.pbtxt says."""
    rows = guard.scorers[0].tokenizer.encode_batch(TEXTS)
    given = []
    for name, values in zip(("input_ids", "attention_mask"), right_pad(rows), strict=True):
        tensor = grpc.InferInput(name, list(values.shape), "INT64")
        tensor.set_data_from_numpy(values)
        given.append(tensor)
    answer = client.infer("guard_tokens", given)
    expected = [guard.score(text) for text in TEXTS]
    assert answer.as_numpy("score").shape == (len(TEXTS), 1)
    scores = answer.as_numpy("score")[:, 0]
    assert scores == pytest.approx([result.score for result in expected], abs=1e-6)
    assert answer.as_numpy("logits").shape == (len(TEXTS), 2)
    assert answer.as_numpy("features").shape[0] == len(TEXTS)


def test_plain_json_is_answered_too(ports, guard):
    url = f"http://127.0.0.1:{ports[0]}/v2/models/guard/generate"
    answer = httpx.post(url, json={"text": "a text"}).json()
    assert answer["score"] == pytest.approx(guard.score("a text").score, abs=1e-6)
    assert json.loads(answer["result"])["score"] == pytest.approx(answer["score"], abs=1e-12)


def test_a_prompt_and_its_response_are_joined(client, guard):
    for given in ({"prompt": "hello"}, {"response": "ok"}, {"prompt": "hello", "response": "ok"}):
        inputs = [strings(name, [text]) for name, text in given.items()]
        found = verdicts(client.infer("guard", inputs))
        assert found["score"][0] == pytest.approx(guard.score(**given).score, abs=1e-6)


def test_requests_that_come_at_once_are_scored_together_and_not_mixed_up(client, guard):
    texts = [f"text number {n}" for n in range(64)]
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(client.infer, "guard", [strings("text", [text])]) for text in texts]
        found = [verdicts(one.result())["score"][0] for one in asked]
    np.testing.assert_allclose(found, [guard.score(text).score for text in texts], atol=1e-6)
    (statistics,) = client.get_inference_statistics("guard").model_stats
    assert statistics.execution_count < statistics.inference_count


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": ["a", "b" * 17_000]}, r"texts\[1\]: .*tokens"),
        ({"text": ["a"], "prompt": ["b"]}, "text, or by prompt"),
    ],
)
def test_what_cannot_be_scored_is_an_error(client, given, message):
    inputs = [strings(name, texts) for name, texts in given.items()]
    with pytest.raises(InferenceServerException, match=message):
        client.infer("guard", inputs)


def test_one_bad_request_does_not_hurt_its_neighbours(client, guard):
    def ask(number):
        text = b"\xff" if number % 2 else f"text {number}".encode()
        tensor = grpc.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text]], dtype=np.object_))
        return client.infer("guard", [tensor])

    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, number) for number in range(32)]
    for number, one in enumerate(asked):
        if number % 2:
            with pytest.raises(InferenceServerException, match="UTF-8"):
                one.result()
        else:
            score = verdicts(one.result())["score"][0]
            assert score == pytest.approx(guard.score(f"text {number}").score, abs=1e-6)


class Streams:
    """Triton's bidirectional stream over gRPC."""

    def __init__(self, port):
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{port}")
        self.answers = queue.Queue()
        self.client.start_stream(lambda result, error: self.answers.put((result, error)))

    def feed(self, sequence, pieces, *, start=False, end=False, prompt=None):
        inputs = [strings("text", pieces, (1, len(pieces)))]
        if prompt is not None:
            inputs.append(strings("prompt", [prompt]))
        self.client.async_stream_infer(
            "guard_stream", inputs, sequence_id=sequence, sequence_start=start, sequence_end=end
        )
        return [self.answer() for _ in pieces]

    def answer(self):
        result, error = self.answers.get(timeout=30)
        if error is not None:
            raise error
        return verdicts(result)["score"][0]


@pytest.fixture
def streams(ports):
    made = Streams(ports[1])
    yield made
    made.client.stop_stream()
    made.client.close()


def test_sequences_are_streams_and_each_piece_has_its_verdict(streams, guard):
    with guard.stream() as first, guard.stream(prompt="tell me") as second:
        for number, pieces in enumerate((["Once", " upon"], [" a time"], [" it ends"])):
            start, end = number == 0, number == 2
            found = streams.feed(7, pieces, start=start, end=end)
            assert found == pytest.approx([first.feed(p).score for p in pieces], abs=1e-6)
            prompt = "tell me" if start else None
            found = streams.feed(8, pieces, start=start, end=end, prompt=prompt)
            assert found == pytest.approx([second.feed(p).score for p in pieces], abs=1e-6)


def test_sequences_that_are_fed_at_once_are_not_mixed_up(streams, guard, ports):
    others = [Streams(ports[1]) for _ in range(6)]
    pieces = [[f"stream {n}", " goes", f" on {n}"] for n in range(len(others))]
    with ThreadPoolExecutor(len(others)) as pool:
        asked = [
            pool.submit(other.feed, 100 + n, pieces[n], start=True, end=True)
            for n, other in enumerate(others)
        ]
        found = [one.result() for one in asked]
    for scores, fed in zip(found, pieces, strict=True):
        with guard.stream() as stream:
            assert scores == pytest.approx([stream.feed(p).score for p in fed], abs=1e-6)
    for other in others:
        other.client.stop_stream()
        other.client.close()


def test_a_sequence_may_begin_anew(streams, guard):
    streams.feed(9, ["some text"], start=True)
    (found,) = streams.feed(9, ["another"], start=True, end=True)
    with guard.stream() as stream:
        assert found == pytest.approx(stream.feed("another").score, abs=1e-6)


def test_a_sequence_that_failed_has_no_verdict_any_more(streams):
    streams.feed(10, ["some text"], start=True)
    with pytest.raises(InferenceServerException, match="first request"):
        streams.feed(10, ["a"], prompt="too late")
    with pytest.raises(InferenceServerException, match="start the sequence again"):
        streams.feed(10, ["a"], end=True)
