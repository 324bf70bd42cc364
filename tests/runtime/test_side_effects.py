"""Scoring asks no host and writes nothing; a process that forks after loading is not held up."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Stands in for the system's resolver and notes what it is asked for.
_RESOLVER = r"""
#define _GNU_SOURCE
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>

static void note(const char *name) {
    FILE *file = fopen(getenv("LOOKED_UP"), "a");
    fprintf(file, "%s\n", name ? name : "(none)");
    fclose(file);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **result) {
    note(name);
    return EAI_FAIL;
}

struct hostent *gethostbyname(const char *name) {
    note(name);
    return NULL;
}
"""
_SCORE = """
import sys, time
from siren_runtime import Guard
with Guard.load(sys.argv[1]) as guard:
    guard.score_batch(["hello", "a longer text"])
    with guard.stream(prompt="a") as stream:
        stream.feed("b")
    time.sleep(float(sys.argv[2]))
"""
_FORK = """
import json, os, sys, time
import siren_runtime
from siren_runtime import Guard, SirenError

folder, threads, what = sys.argv[1], int(sys.argv[2]) or None, sys.argv[3]
guard = Guard.load(folder, threads=threads)
texts = ["hello", "a longer text, of other bytes"] * 20
expected = [result.score for result in guard.score_batch(texts)]
stream = guard.stream(prompt="hello")
stream.feed(" world")
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    answer = {}
    try:
        if what == "score":
            guard.score_batch(texts)
        if what == "feed":
            stream.feed(" and more")
        if what == "stream":
            guard.stream(prompt="a").feed("b")
        if what == "load":
            own = Guard.load(folder, threads=threads)
            answer["same"] = [result.score for result in own.score_batch(texts)] == expected
            own.close()
        if what == "close":
            guard.close()
            del guard, stream
    except SirenError as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    os.write(writing, json.dumps(answer).encode())
    sys.exit(0)
os.close(writing)
deadline = time.monotonic() + 20
while True:
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended or time.monotonic() > deadline:
        break
    time.sleep(0.01)
if not ended:
    os.kill(child, 9)
answer = json.loads(os.read(reading, 1 << 16) or b"{}")
answer |= {"ended": bool(ended), "status": status, "parent": child != 0}
answer["parent_scores"] = [result.score for result in guard.score_batch(texts)] == expected
print(json.dumps(answer))
"""
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture(scope="module")
def resolver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that is loaded before the system's."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler, to put a resolver before the system's")
    folder = tmp_path_factory.mktemp("resolver")
    (folder / "resolver.c").write_text(_RESOLVER)
    command = [compiler, "-shared", "-fPIC", "resolver.c", "-o", "resolver.so"]
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    return folder / "resolver.so"


def _run(
    resolver: Path, place: Path, code: str, *arguments: str, **environment: str
) -> tuple[list[str], list[str]]:
    """Run code in `place`, an empty home; return the hosts it asked for and the files it left."""
    for name in ("home", "tmp", "work"):
        (place / name).mkdir(parents=True)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ORT_", "XDG_")) and name != "LD_PRELOAD"
    }
    subprocess.run(
        [sys.executable, "-B", "-c", code, *arguments],
        env=inherited
        | {
            "HOME": str(place / "home"),
            "TMPDIR": str(place / "tmp"),
            "LOOKED_UP": str(place / "hosts"),
            "LD_PRELOAD": str(resolver),
        }
        | environment,
        cwd=place / "work",
        check=True,
        timeout=60,
    )
    hosts = (place / "hosts").read_text().split() if (place / "hosts").exists() else []
    left = [str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()]
    return hosts, [path for path in left if path != "hosts"]


def test_scoring_looks_up_no_host_and_leaves_no_file(
    resolver: Path, own_bundle: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in own_bundle.iterdir()}
    assert _run(resolver, tmp_path / "place", _SCORE, str(own_bundle), "0.5") == ([], [])
    assert {path: path.read_bytes() for path in own_bundle.iterdir()} == before


def test_a_lookup_would_be_seen(resolver: Path, tmp_path: Path) -> None:
    code = (
        "import socket, contextlib\nwith contextlib.suppress(OSError):\n"
        "    socket.getaddrinfo('host.example', 80)"
    )
    assert _run(resolver, tmp_path / "place", code) == (["host.example"], [])


@pytest.mark.parametrize(("set_to", "found"), [(None, "1"), ("0", "0"), ("", "")])
def test_telemetry_is_off_unless_the_environment_says_otherwise(
    set_to: str | None, found: str, bundle: Path
) -> None:
    code = (
        "import os, sys\nfrom siren_runtime import Guard\nGuard.load(sys.argv[1])\n"
        "print(repr(os.environ['ORT_DISABLE_TELEMETRY']))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {} if set_to is None else {"ORT_DISABLE_TELEMETRY": set_to}
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == repr(found)


def _fork(bundle: Path, threads: int, what: str) -> dict[str, object]:
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORK, str(bundle), str(threads), what],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@forks
@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("what", ["exit", "close"])
def test_a_child_that_was_forked_after_loading_ends(threads: int, what: str, bundle: Path) -> None:
    answer = _fork(bundle, threads, what)
    assert (answer["ended"], answer["status"]) == (True, 0)
    assert answer["parent_scores"]


@forks
@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("what", ["score", "feed", "stream"])
def test_a_guard_of_the_parent_refuses_to_score_in_the_child(
    threads: int, what: str, bundle: Path
) -> None:
    answer = _fork(bundle, threads, what)
    assert (answer["ended"], answer["status"]) == (True, 0)
    assert "BackendError: " in str(answer["error"])
    assert "load the guard in the child" in str(answer["error"])
    assert answer["parent_scores"]


@forks
@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_guard_that_the_child_loads_scores_there(threads: int, bundle: Path) -> None:
    answer = _fork(bundle, threads, "load")
    assert (answer["ended"], answer["status"]) == (True, 0)
    assert answer["same"] is True
    assert answer["parent_scores"]
