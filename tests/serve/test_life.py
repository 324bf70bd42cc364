"""A server that ends, reloads or loses a worker loses no request that it accepted."""

import asyncio
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar.datastructures import State

from load import SECRET, Load, point
from models import make_artifact
from proxied import ask
from served import Command, command, eventually, running
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from siren_runtime.errors import BackendError
from siren_serve import protocol
from siren_serve.app import _handle_signals
from siren_serve.commands.serve import _named
from siren_serve.guards import Guards
from siren_serve.metrics import Metrics
from siren_serve.server import uvicorn_options
from siren_serve.settings import GenerateSettings, ProxySettings, Settings
from upstream import ModelServer, Script, chat_of
from waiting import WAIT_S

DRAIN_S = 2.0


def test_sigterm_under_load_loses_nothing_and_logs_no_text(
    bundle: Path, guard: Guard, tmp_path: Path
) -> None:
    with command(tmp_path, f"tiny={bundle}", "--drain", DRAIN_S) as server:
        load = Load(server.url, [guard.score(SECRET).score])
        eventually(lambda: load.answers > 20)
        load.may_fail_from = time.monotonic() + DRAIN_S / 2
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: not server.is_ready())
        answered = load.answers
        eventually(lambda: load.answers > answered)  # not ready, and still it answers
        assert server.process.wait(60) == 0
        load.stop()
    assert not load.wrong
    assert load.answers > 20
    assert SECRET not in server.log.read_text(encoding="utf-8")
    lines = [line for line in server.lines() if line["logger"] == "siren_serve.access"]
    assert {"method", "route", "status", "ms", "time", "level"} <= lines[-1].keys()
    assert server.lines()[-1]["message"]


def test_sigterm_without_a_drain_answers_what_was_accepted(
    bundle: Path, guard: Guard, tmp_path: Path
) -> None:
    with command(tmp_path, f"tiny={bundle}", "--drain", 0) as server:
        load = Load(server.url, [guard.score(SECRET).score])
        eventually(lambda: load.answers > 60)
        load.may_fail_from = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        load.stop()
    assert not load.wrong


def test_settings_reach_workers_whole() -> None:
    proxy = ProxySettings(upstream="http://localhost/v1", key_file=Path("key"))
    settings = Settings(guards={"tiny": "bundle"}, keys_file=Path("keys"), proxy=proxy)
    assert Settings.decode(settings.encode()) == settings


@pytest.mark.parametrize(
    ("model", "seconds"),
    [
        ({}, 40),
        ({"proxy": ProxySettings(upstream="http://localhost/v1", timeout_s=600)}, 630),
        ({"proxy": ProxySettings(upstream="http://localhost/v1", timeout_s=5)}, 40),
        ({"generate": GenerateSettings(folder="grafted", name="tiny", timeout_s=600)}, 630),
    ],
)
def test_what_may_take_longest_has_its_time_when_the_server_ends(
    model: dict[str, Any], seconds: int
) -> None:
    options = uvicorn_options(Settings(guards={}, timeout_s=10, **model))
    assert options["timeout_graceful_shutdown"] == seconds


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{folder}/nowhere"], "nowhere"),
        (["{bundle}", "--upstream", "http://localhost/v1", "--response-only"], "response_only"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_a_line(
    bundle: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    code = "from siren_serve.commands.serve import app; app()"
    given = [argument.format(bundle=bundle, folder=tmp_path) for argument in arguments]
    command = [sys.executable, "-c", code, *given, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    (why,) = [line for line in done.stderr.splitlines() if told in line and line[0] == "{"]
    assert json.loads(why)["level"] == "error"
    assert "Traceback" not in why


@pytest.mark.parametrize("option", ["--api-key-file", "--upstream-key-file", "--tls-cert"])
def test_a_file_that_cannot_be_used_is_named_whatever_the_workers(
    bundle: Path, tmp_path: Path, option: str
) -> None:
    code = "from siren_runtime.commands.siren import app; app()"
    (tmp_path / "file").write_text("")
    options = ["--upstream", "http://localhost/v1", "--tls-key", tmp_path / "file"]
    options = options[2:] if option == "--tls-cert" else options[:2]
    arguments = ["serve", bundle, "--workers", 2, "--port", 0, *options, option, tmp_path / "file"]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file") in done.stderr.splitlines()[-1]


def test_a_server_may_have_as_many_files_open_as_connections_and_has_its_keys(
    bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("a key of sixteen characters\n")
    options = ("--max-connections", 700, "--api-key-file", tmp_path / "keys")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with command(tmp_path, f"tiny={bundle}", *options) as server:
            assert httpx.get(f"{server.url}/info").status_code == 401
            found = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found[0] == min(956, before[1])


def test_a_request_that_is_on_its_way_when_the_server_ends_is_answered(
    bundle: Path, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_ON_ITS_WAY_S", 60.0)
    with running({"tiny": str(bundle)}) as server:
        assert server.client.post("/v1/score", json={"text": SECRET}).status_code == 200
        server.guards.draining = True  # as SIGTERM does before the end
        server.server.should_exit = True
        eventually(lambda: not _listens(server.url))
        answer = server.client.post("/v1/score", json={"text": SECRET})
        assert answer.json()["score"] == pytest.approx(guard.score(SECRET).score, abs=1e-6)
        assert answer.headers["connection"] == "close"


def _listens(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        with socket.create_connection((host, int(port))):
            return True
    except ConnectionRefusedError:
        return False


def test_sighup_under_load_takes_the_new_bundle_and_loses_nothing(
    bundle: Path, other: Path, guard: Guard, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle)
    before, after = guard.score(SECRET).score, Guard.load(other).score(SECRET).score
    assert abs(before - after) > 1e-3
    with command(tmp_path, f"tiny={link}") as server:
        load = Load(server.url, [before, after])
        for target in (other, bundle, other):
            point(link, target)
            _reload(server, "reloaded")
        assert _score(server) == pytest.approx(after, abs=1e-6)
        link.unlink()
        _reload(server, "not reloaded")
        assert _score(server) == pytest.approx(after, abs=1e-6)
        load.stop()
    assert not load.wrong
    assert load.answers > 0


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """The signals to end that come through, which are handled as before when the test has ended."""
    came: list[int] = []
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    before = {number: signal.getsignal(number) for number in numbers}
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: came.append(number))
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("workers", "sent", "ends"),
    [
        (1, [signal.SIGTERM], False),
        (1, [signal.SIGTERM, signal.SIGTERM], True),
        (2, [signal.SIGTERM, signal.SIGTERM], False),  # of systemd, and of the parent
        (2, [signal.SIGINT, signal.SIGTERM], False),  # of the terminal, and of the parent
        (2, [signal.SIGINT, signal.SIGTERM, signal.SIGINT], True),
    ],
)
def test_a_drain_is_ended_by_who_asks_twice_and_not_by_the_parent(
    signals: list[int], workers: int, sent: list[signal.Signals], ends: bool
) -> None:
    async def receive() -> None:
        settings = Settings(guards={}, workers=workers, drain_s=1000.0)
        state = State({"settings": settings, "guards": Guards(settings, Metrics())})
        _handle_signals(state, asyncio.get_running_loop())
        for number in sent:
            signal.raise_signal(number)
        for _ in range(10):  # what is due at once is done then
            await asyncio.sleep(0)
        assert state.guards.draining

    asyncio.run(receive())
    assert bool(signals) is ends


def test_the_end_of_a_drain_comes_once(signals: list[int]) -> None:
    """uvicorn takes a second SIGINT for cutting off what it still answers."""

    async def receive() -> None:
        settings = Settings(guards={}, drain_s=0.05)
        state = State({"settings": settings, "guards": Guards(settings, Metrics())})
        _handle_signals(state, asyncio.get_running_loop())
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0.2)  # the drain's end would have come, too

    asyncio.run(receive())
    assert signals == [signal.SIGINT]


def test_a_system_without_sighup_may_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")

    async def handle() -> None:
        state = State({"settings": Settings(guards={})})
        _handle_signals(state, asyncio.get_running_loop())

    asyncio.run(handle())


KEY = "a key of sixteen characters and more"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(KEY)
    return path


def test_an_answer_that_comes_after_a_reload_is_read_by_the_guard_of_its_prompt(
    bundle: Path, keys: Path, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    go_on, before = threading.Event(), len(upstream.asked)
    upstream.script = Script(whole=chat_of({"content": letters[0]}), until=go_on)
    proxy = ProxySettings(upstream=upstream.url)
    headers = {"X-API-Key": KEY}
    with running({"tiny": str(bundle)}, proxy=proxy, keys_file=keys) as server:
        old = server.served
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(ask, server, letters[0], extra_headers=headers)
            eventually(lambda: len(upstream.asked) > before)
            assert server.client.post("/admin/reload", headers=headers).status_code == 200
            assert server.served is not old
            go_on.set()
            assert answer.result(WAIT_S).choices[0].message.content == letters[0]
        eventually(lambda: _is_closed(old.guard.guard))


def test_several_guards_are_exchanged_together_or_not_at_all(
    bundle: Path, other: Path, keys: Path, tmp_path: Path
) -> None:
    links = {name: tmp_path / name for name in ("first", "second")}
    for link in links.values():
        link.symlink_to(bundle)
    named = {name: str(link) for name, link in links.items()}
    headers = {"X-API-Key": KEY}
    with running(named, keys_file=keys) as server:
        before = server.guards.all()
        point(links["first"], other)
        links["second"].unlink()
        keys.write_text("another key of sixteen characters\n")
        answer = server.client.post("/admin/reload", headers=headers)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (409, "not_reloaded")
        assert "the guard 'second'" in error["message"]
        assert server.guards.all() == before
        assert server.client.get("/info", headers=headers).status_code == 200
        links["second"].symlink_to(other)
        keys.write_text(f"{KEY}\n")
        assert server.client.post("/admin/reload", headers=headers).status_code == 200
        assert not {*before} & {*server.guards.all()}
        eventually(lambda: all(_is_closed(served.guard.guard) for served in before))


def test_a_guard_that_cannot_read_answers_as_asked_is_not_taken(
    bundle: Path,
    keys: Path,
    upstream: ModelServer,
    tmp_path: Path,
    backbone_folder: Callable[[str], Path],
) -> None:
    """An answer by itself is what decoders alone read: the bundle taken here reads whole texts."""
    backbone = backbone_folder("qwen3")
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone, layers=[1]))
    export_bundle(artifact, load_checkpoint(backbone), tmp_path / "decoder")
    link = tmp_path / "guard"
    link.symlink_to(tmp_path / "decoder")
    proxy = ProxySettings(upstream=upstream.url, response_only=True)
    with running({"guard": str(link)}, proxy=proxy, keys_file=keys) as server:
        before = server.guards.all()
        point(link, bundle)
        answer = server.client.post("/admin/reload", headers={"X-API-Key": KEY})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (409, "not_reloaded")
        assert "response_only" in error["message"]
        assert server.guards.all() == before
        assert not _is_closed(before[0].guard.guard)


def _is_closed(guard: Guard) -> bool:
    try:
        guard.score("a")
    except BackendError:
        return True
    return False


def _reload(server: Command, message: str) -> None:
    def times() -> int:
        return sum(line["message"].startswith(message) for line in server.lines())

    before = times()
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: times() > before)


def _score(server: Command) -> float:
    answer = httpx.post(f"{server.url}/v1/score", json={"text": SECRET})
    score: float = answer.json()["score"]
    return score


def test_bundles_have_names() -> None:
    assert _named(["a/b"]) == {"guard": "a/b"}
    assert _named(["a/b", "n=c", "d/e"]) == {"guard": "a/b", "n": "c", "e": "d/e"}
    assert _named(["dir/x=1/b"]) == {"guard": "dir/x=1/b"}
