"""Several workers: one that is killed, and bundles that are exchanged, cost no request."""

import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from certificates import certify
from load import SECRET, Load, point
from served import Command, command, eventually
from siren_runtime import Guard
from upstream import ModelServer, Script, chat_of
from waiting import WAIT_S

KEY = "a key of sixteen characters and more"


def workers(server: Command) -> set[int]:
    """The processes that answer, each call over a connection of its own."""
    return {
        httpx.get(f"{server.url}/info", headers={"X-API-Key": KEY}).json()["process"]
        for _ in range(20)
    }


def both(server: Command, but: Collection[int] = ()) -> set[int]:
    """The two workers, once each has answered; none of others that may answer yet.

    Which one answers is the system's choice, so that twenty calls may meet one alone.
    """
    found = set[int]()

    def have_answered() -> bool:
        found.update(workers(server).difference(but))
        return len(found) == 2

    eventually(have_answered)
    return found


def measured(folder: Path) -> set[int]:
    """The processes whose gauges count."""
    return {int(path.stem.rpartition("_")[2]) for path in folder.rglob("gauge_livesum_*.db")}


def score(server: Command) -> float:
    answer = httpx.post(f"{server.url}/v1/score", json={"text": SECRET})
    value: float = answer.json()["score"]
    return value


def retried(call: Callable[[], object]) -> object:
    """Call again where the connection was the killed worker's."""
    for _ in range(100):
        try:
            return call()
        except (httpx.HTTPError, KeyError):  # noqa: PERF203 - it is what is waited for
            time.sleep(0.1)
    raise AssertionError("nobody answers")


def test_workers_serve_on_when_one_is_killed(bundle: Path, guard: Guard, tmp_path: Path) -> None:
    with command(tmp_path, f"tiny={bundle}", "--workers", 2) as server:
        expected = guard.score(SECRET).score
        first = next(iter(both(server)))
        os.kill(first, signal.SIGSTOP)  # so that it dies while the parent waits for its answer
        time.sleep(1)
        os.kill(first, signal.SIGKILL)
        start = time.monotonic()
        assert retried(lambda: score(server)) == pytest.approx(expected, abs=1e-6)
        assert time.monotonic() - start < 30

        def replaced() -> bool:
            found = retried(lambda: workers(server))
            assert isinstance(found, set)
            return len(found) == 2 and first not in found

        eventually(replaced)
        sessions = httpx.post(f"{server.url}/v1/streams", json={})
        assert sessions.status_code == 501
        metrics = httpx.get(f"{server.url}/metrics").text
        families = {family.name: family for family in text_string_to_metric_families(metrics)}
        asked = {
            (sample.labels["route"], sample.labels["status"]): sample.value
            for sample in families["siren_requests"].samples
            if sample.name == "siren_requests_total"
        }
        assert asked["/v1/score", "200"] >= 1
    assert server.process.returncode == 0


def test_workers_serve_on_while_one_cannot_start_and_the_last_one_ends_the_server(
    bundle: Path, guard: Guard, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle)
    with command(tmp_path, f"tiny={link}", "--workers", 2) as server:

        def pauses() -> list[int]:
            failures = [line for line in server.lines() if "did not start" in line["message"]]
            assert {line["level"] for line in failures} <= {"error"}
            return [line["pause_s"] for line in failures]

        first, other = both(server)
        link.unlink()
        os.kill(first, signal.SIGKILL)
        eventually(lambda: len(pauses()) == 2)
        assert pauses() == [1, 2]
        assert workers(server) == {other}
        assert score(server) == pytest.approx(guard.score(SECRET).score, abs=1e-6)
        link.symlink_to(bundle)
        served = both(server)
        assert other in served
        link.unlink()
        for process in served:
            os.kill(process, signal.SIGKILL)
        assert server.process.wait(WAIT_S) == 1
    assert "no other serves" in server.log.read_text(encoding="utf-8").splitlines()[-1]


def test_workers_take_the_new_bundle_under_load_and_keep_the_old_one_if_it_is_unusable(
    bundle: Path, other: Path, guard: Guard, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle)
    before, after = guard.score(SECRET).score, Guard.load(other).score(SECRET).score
    folder = {"TMPDIR": str(tmp_path)}  # where workers leave what they measure
    with command(tmp_path, f"tiny={link}", "--workers", 2, **folder) as server:
        old = both(server)
        load = Load(server.url, [before, after])
        eventually(lambda: measured(tmp_path) >= old)
        point(link, other)
        server.process.send_signal(signal.SIGHUP)
        new = both(server, but=old)
        eventually(lambda: not measured(tmp_path) & old)  # which would count for good
        assert [score(server) for _ in range(20)] == pytest.approx([after] * 20, abs=1e-6)
        link.unlink()
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "the reload ends" in server.log.read_text(encoding="utf-8"))
        assert workers(server) <= new
        assert score(server) == pytest.approx(after, abs=1e-6)
        load.stop()
    assert not load.wrong
    assert load.answers > 0


# A Python that waits at its start while a file is there, and says so by another one.
WAITS = """
import os, pathlib, time
held = pathlib.Path(os.environ["HELD"])
while held.exists():
    held.with_name("waits").touch()
    time.sleep(0.05)
"""


def test_a_reload_whose_worker_is_long_in_loading_keeps_the_parent_from_nothing(
    bundle: Path, tmp_path: Path
) -> None:
    held, waits = tmp_path / "held", tmp_path / "waits"
    (tmp_path / "sitecustomize.py").write_text(WAITS)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with command(tmp_path, bundle, "--workers", 2, PYTHONPATH=path, HELD=str(held)) as server:
        try:
            first = next(iter(both(server)))
            held.touch()
            server.process.send_signal(signal.SIGHUP)
            eventually(waits.exists)
            os.kill(first, signal.SIGKILL)
            eventually(lambda: "a worker died" in server.log.read_text(encoding="utf-8"))
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(WAIT_S) == 0
        finally:
            held.unlink(missing_ok=True)


def test_a_reload_whose_old_worker_still_answers_keeps_the_parent_from_nothing(
    bundle: Path, tmp_path: Path, upstream: ModelServer
) -> None:
    go_on, before = threading.Event(), len(upstream.asked)
    upstream.script = Script(whole=chat_of({"content": "Yes."}), until=go_on)
    asked = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    options = ("--workers", 2, "--upstream", upstream.url, "--block-at", 1)
    with command(tmp_path, bundle, *options) as server, ThreadPoolExecutor() as pool:
        try:
            old, chat = both(server), f"{server.url}/v1/chat/completions"
            answer = pool.submit(httpx.post, chat, json=asked, timeout=WAIT_S)
            eventually(lambda: len(upstream.asked) > before)
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: "Terminated child process" in server.log.read_text(encoding="utf-8"))
            found = set[int]()
            eventually(lambda: found.update(workers(server) - old) or found)
            (new,) = found
            os.kill(new, signal.SIGKILL)
            eventually(lambda: "a worker died" in server.log.read_text(encoding="utf-8"))
        finally:
            go_on.set()
        assert answer.result(WAIT_S).status_code == 200
        both(server, but={*old, new})


@pytest.mark.parametrize("option", ["--api-key-file", "--tls-key"])
def test_a_file_that_a_new_worker_cannot_use_is_a_line_of_the_log(
    bundle: Path, tmp_path: Path, option: str
) -> None:
    file, tls, more = tmp_path / "file", None, list[object]()
    if option == "--api-key-file":
        file.write_text(KEY)
    else:
        certify(tmp_path, "server", "-addext", "subjectAltName=IP:127.0.0.1")
        (tmp_path / "server.key").rename(file)
        tls = ssl.create_default_context(cafile=str(tmp_path / "server.pem"))
        more = ["--tls-cert", tmp_path / "server.pem"]
    with command(tmp_path, bundle, "--workers", 2, option, file, *more, tls=tls) as server:
        file.write_text("short")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "the reload ends" in server.log.read_text(encoding="utf-8"))
        assert server.is_ready()
    told = [line for line in server.lines() if "does not start" in line["message"]]
    assert {(line["level"], str(file) in line["message"]) for line in told} == {("error", True)}
    assert len(server.lines()) == len(server.log.read_text(encoding="utf-8").splitlines())


def test_workers_reload_over_http(bundle: Path, other: Path, tmp_path: Path) -> None:
    keys, link = tmp_path / "keys", tmp_path / "current"
    keys.write_text(KEY)
    link.symlink_to(bundle)
    expected = Guard.load(other).score(SECRET).score
    headers = {"X-API-Key": KEY}
    with command(tmp_path, link, "--workers", 2, "--api-key-file", keys) as server:
        point(link, other)
        assert httpx.post(f"{server.url}/admin/reload").status_code == 401
        answer = httpx.post(f"{server.url}/admin/reload", headers=headers)
        assert answer.status_code == 202
        paths = httpx.get(f"{server.url}/openapi.json", headers=headers).json()["paths"]
        assert {*paths["/admin/reload"]["post"]["responses"]} == {"200", "202", "default"}

        def scores() -> set[float]:
            asked = {"json": {"text": SECRET}, "headers": headers}
            return {
                round(httpx.post(f"{server.url}/v1/score", **asked).json()["score"], 5)
                for _ in range(20)
            }

        eventually(lambda: scores() == {round(expected, 5)})
