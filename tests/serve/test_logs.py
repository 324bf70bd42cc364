"""What a server writes into its log holds no text, no key and no path of a request."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from load import SECRET
from served import Command, command
from upstream import ModelServer

KEY = "a-key-of-sixteen-characters-and-more"
WORD = SECRET.replace(" ", "-")
HEADERS = {"Authorization": f"Bearer {KEY}"}


def _say_everywhere(server: Command) -> None:
    """Put the text and the key wherever a request has a place for them."""
    with httpx.Client(base_url=server.url, headers=HEADERS) as client:
        client.post(f"/v1/score?text={WORD}", json={"text": WORD})
        client.get(f"/{WORD}")
        client.get(f"/v1/models/{WORD}")
    url = server.url.replace("http", "ws")
    with connect(f"{url}/v1/stream?key={KEY}&text={WORD}", additional_headers=HEADERS) as socket:
        for message in ({"prompt": WORD}, {"text": WORD}, {"end": True}):
            socket.send(json.dumps(message))
            socket.recv()
    for headers in (HEADERS, {}):
        with pytest.raises(InvalidStatus):
            connect(f"{url}/{WORD}?{KEY}", additional_headers=headers)


@pytest.mark.parametrize("options", ["--log-level info", "--workers 2", "--upstream {upstream}"])
def test_no_text_key_or_path_of_a_request_is_in_the_log(
    bundle: Path, tmp_path: Path, upstream: ModelServer, options: str
) -> None:
    (tmp_path / "keys").write_text(KEY)
    given = options.format(upstream=upstream.url).split()
    with command(tmp_path, bundle, "--api-key-file", tmp_path / "keys", *given) as server:
        _say_everywhere(server)
    text = server.log.read_text(encoding="utf-8")
    assert WORD not in text
    assert KEY not in text
    lines = [line for line in server.lines() if line["logger"] == "siren_serve.access"]
    told = {(line["method"], line["route"], line["status"]) for line in lines}
    assert {
        ("POST", "/v1/score", 200),
        ("GET", "unmatched", 404),
        ("WEBSOCKET", "/v1/stream", 101),
        ("WEBSOCKET", "unmatched", 403),
    } <= told


@pytest.mark.parametrize(
    ("level", "own", "uvicorn", "others"),
    [
        ("info", "INFO", "INFO", "WARNING"),
        ("warning", "WARNING", "WARNING", "WARNING"),
        ("error", "ERROR", "ERROR", "ERROR"),
    ],
)
def test_packages_that_log_paths_of_requests_begin_at_warning(
    level: str, own: str, uvicorn: str, others: str
) -> None:
    code = (
        "import logging, sys; from siren_serve import logs; logs.configure(sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    print(logging.getLevelName(logging.getLogger(name).getEffectiveLevel()))"
    )
    names = "siren_serve", "siren_runtime.guard", "uvicorn.error", "httpx"
    found = subprocess.run(
        [sys.executable, "-c", code, level, *names], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [own, own, uvicorn, others]
