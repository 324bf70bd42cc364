"""siren bench serve: what load it puts, and what it says of the answers."""

import asyncio
import json
import time

import pytest
from typer.testing import CliRunner

from models import make_artifact
from siren_bench.cli import app
from siren_bench.serving.callers import ask_by_tasks, ask_by_threads
from siren_bench.serving.client import Client
from siren_bench.serving.load import LOST, NOT_CONNECTED, Answer, Load, summary, wrong
from siren_bench.serving.soak import growth


def run(*arguments):
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


@pytest.fixture
def head(tmp_path, backbone_folder):
    return make_artifact(tmp_path / "head", backbone_folder("bert"))


def common(tmp_path, head):
    return head, "--precision", "fp32", "--tokens", "6,12", "-o", tmp_path / "serve.json"


def results(tmp_path):
    record = json.loads((tmp_path / "serve.json").read_text())
    assert record["settings"]["precision"] == "fp32"
    return record["results"]


def test_subjects_are_measured_side_by_side(tmp_path, head):
    arguments = ("--callers", "2", "--rates", "0.5", "--seconds", 0.3, "--rounds", 1, "--cores", 1)
    done = run(*common(tmp_path, head), *arguments)
    assert done.exit_code == 0, done.output
    entries = results(tmp_path)
    assert {entry["load"] for entry in entries} == {"2 callers", "open, 0.5 x capacity"}
    assert len({entry["subject"] for entry in entries}) == len(entries) / 2 == 5
    for entry in entries:
        (found,) = entry["rounds"]
        assert found["statuses"].keys() == {"200"}
        assert found["resident_bytes"] > 10e6
        assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert (tmp_path / "serve.png").exists()
    assert "| siren serve | 2 callers |" in done.stdout


def test_a_soak_watches_memory_and_verdicts(tmp_path, head):
    done = run(*common(tmp_path, head), "--callers", "2", "--minutes", 0.02, "--seconds", 0.3)
    assert done.exit_code == 0, done.output
    entries = results(tmp_path)
    assert len(entries) == 4
    assert all(entry["wrong"] == 0 and entry["statuses"].keys() == {"200"} for entry in entries)
    assert "| wrong scores | 0 |" in done.stdout


def test_restarts_count_what_is_lost(tmp_path, head):
    done = run(*common(tmp_path, head), "--callers", "4", "--restarts", 1, "--seconds", 1.5)
    assert done.exit_code == 0, done.output
    reloaded, ended, killed = results(tmp_path)
    for entry in (reloaded, ended, killed):
        assert entry["scored_later"] > 0
        assert entry["wrong"] == 0
    assert reloaded["lost"] == ended["lost"] == 0
    assert killed["lost"] <= 4  # what each caller had under way at the worker


def test_hostile_clients_leave_neighbours_their_scores(tmp_path, head):
    kinds = "chunks,json,messages,values"
    options = ("--hostile", kinds, "--seconds", 0.5, "--rounds", 1, "--rates", "0.5")
    done = run(*common(tmp_path, head), *options)
    assert done.exit_code == 0, done.output
    entries = {entry["kind"]: entry for entry in results(tmp_path)}
    assert ",".join(entries) == kinds
    for entry in entries.values():
        assert entry["beside"]["scored"] > 0
        assert entry["beside"]["unscored"] == entry["beside"]["wrong"] == 0
        assert not any(end.startswith("5") for end in entry["hostile"])
    ends = {kind: set(entry["hostile"]) for kind, entry in entries.items()}
    assert ends["chunks"] == {"413"}
    assert ends["values"] == {"413"}
    assert ends["json"] <= {"400", "413", "422"}
    assert ends["messages"] <= {"200", "400", "413", "422"}


def test_the_first_token_is_timed_with_and_without_a_guard(tmp_path, head):
    done = run(*common(tmp_path, head), "--first-token", "--rounds", 1, "--tokens", 6)
    assert done.exit_code == 0, done.output
    entries = results(tmp_path)
    assert {(e["order"], e["tokens"], e["first_ms"]) for e in entries} == {
        (order, 6, wait) for order in ("beside", "before") for wait in (0, 50, 200)
    }
    for entry in entries:
        assert entry["first_ms"] < entry["alone_ms"][0]
        assert entry["first_ms"] < entry["guarded_ms"][0]
        assert entry["score_ms"][0] > 0


def test_the_two_measurements_of_the_server_are_not_mixed(tmp_path, head):
    assert run(head, "--minutes", 1, "--restarts", 1).exit_code == 2
    assert run(head, "--hostile", "rude").exit_code == 2
    assert run(head, "--hostile", "all", "--first-token").exit_code == 2
    assert run(head, "--rates", "fast").exit_code == 2


class Slow:
    """Answers one request at a time, each after a while."""

    def __init__(self, seconds):
        self.seconds, self.lock = seconds, asyncio.Lock()

    async def __call__(self, text):
        async with self.lock:
            await asyncio.sleep(self.seconds)
        return 200, 0.5


def test_latencies_of_an_open_loop_count_from_when_a_request_was_due():
    load = Load(time.monotonic(), 0.3, rate=200)
    answers = asyncio.run(ask_by_tasks(Slow(0.02), ["a", "b"], load))
    assert len(answers) > 15  # as they came, whether or not one was answered
    assert max(answer.ended - answer.due for answer in answers) > 0.2
    found = summary(answers, load)
    assert found["texts_per_s"] < found["offered_per_s"]
    assert found["p99_ms"] > 200


def test_threads_ask_for_the_same_texts_at_the_same_times():
    load = Load(time.monotonic(), 0.1, rate=100, seed=3)
    by_threads = ask_by_threads(lambda text: (200, 0.5), ["a", "b", "c"], load, 2)
    by_tasks = asyncio.run(ask_by_tasks(Slow(0), ["a", "b", "c"], load))
    assert sorted((a.due, a.text) for a in by_threads) == [(a.due, a.text) for a in by_tasks]


def test_refused_requests_have_percentiles_of_their_own():
    load = Load(0.0, 10.0, 1)
    answers = [Answer(0, 0.0, 1.0, 200, 0.1), Answer(0, 0.0, 0.002, 429), Answer(0, 9.0, 11.0, 200)]
    found = summary(answers, load)
    assert found["texts_per_s"] == 0.1  # the third came too late
    assert found["refused_p50_ms"] == pytest.approx(2)
    assert found["statuses"] == {"200": 2, "429": 1}


def test_scores_of_another_text_are_wrong():
    answers = [Answer(0, 0, 1, 200, 0.1), Answer(1, 0, 1, 200, 0.1), Answer(1, 0, 1, 503)]
    assert wrong(answers, [0.1, 0.9]) == 1


def test_growth_is_read_off_the_second_half():
    sizes = [1, 50, 100, 102, 104, 106]
    entries = [{"minute": float(n), "resident_bytes": size} for n, size in enumerate(sizes)]
    assert growth(entries) == pytest.approx(2)


def test_the_client_tells_nobody_there_from_an_answer_that_was_lost():
    async def ask():
        async def cut(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(cut, "127.0.0.1", 0)
        client = Client(server.sockets[0].getsockname()[1])
        lost = await client.score("a")
        server.close()
        await server.wait_closed()
        return lost, await client.score("a")

    assert asyncio.run(ask()) == ((LOST, None), (NOT_CONNECTED, None))
