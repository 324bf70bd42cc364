"""A real browser, driven over its DevTools protocol."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.sync.client import ClientConnection, connect

# https://developer.mozilla.org/docs/Web/API/KeyboardEvent/keyCode
_KEY_CODES = {
    "Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36,
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip
_CONTROL = 2
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WAIT_S = 60


class Tab:
    """A tab, and the events that came from it."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._count = connection, 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(timeout=WAIT_S))
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + WAIT_S
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"{expression} did not become true"
            time.sleep(0.05)
        return value

    def type(self, field: str, text: str) -> None:
        """Put text into the field of that id, as a paste does."""
        self.evaluate(f"document.getElementById({json.dumps(field)}).select()")
        self.send("Input.insertText", text=text)

    def press(self, key: str, *, control: bool = False) -> None:
        """Press a key, as who has no pointer does."""
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": _KEY_CODES[key]}
        pressed["modifiers"] = _CONTROL if control else 0
        text = {"text": "\r"} if key == "Enter" and not control else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **pressed, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def picture(self) -> bytes:
        """What it shows, as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def asked_hosts(self) -> set[str]:
        """Host and port of every request, and of every WebSocket that was opened."""
        urls = [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        sockets = [e for e in self.events if e["method"] == "Network.webSocketCreated"]
        urls += [event["params"]["url"] for event in sockets]
        return {urlsplit(url).netloc for url in urls}

    def sent(self) -> list[dict[str, Any]]:
        """Every message that the page has sent over a WebSocket."""
        frames = [e["params"] for e in self.events if e["method"] == "Network.webSocketFrameSent"]
        return [json.loads(frame["response"]["payloadData"]) for frame in frames]

    def wait_for_sent(self, message: dict[str, Any]) -> None:
        """Wait until the page has sent a message over a WebSocket."""
        end = time.monotonic() + WAIT_S
        while message not in self.sent():
            assert time.monotonic() < end, f"{message} was not sent"
            self.evaluate("0")  # events come with an answer
            time.sleep(0.05)

    def errors(self) -> list[dict[str, Any]]:
        """What went wrong in scripts or was refused."""
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        thrown = [e["params"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        return thrown + [entry for entry in logged if entry["level"] == "error"]


def open_page(tab: Tab, url: str) -> None:
    """Open the page of a server, and wait until it knows its guards."""
    tab.send("Page.navigate", url=url)
    tab.wait_for("typeof info !== 'undefined' && !!info")


@contextlib.contextmanager
def browser_tab(folder: Path) -> Iterator[Tab]:
    """Run Chromium without a window until the end of the block."""
    assert CHROMIUM is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [CHROMIUM, *options, f"--user-data-dir={folder}", "--window-size=1200,900", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = _port(folder / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
        with connect(tabs[0]["webSocketDebuggerUrl"], max_size=None, origin=None) as connection:
            yield Tab(connection)
    finally:
        process.terminate()
        process.wait(WAIT_S)


def _port(file: Path) -> int:
    end = time.monotonic() + WAIT_S
    while not file.exists() or file.read_text().count("\n") == 0:
        assert time.monotonic() < end, "the browser did not start"
        time.sleep(0.05)
    return int(file.read_text().split()[0])
