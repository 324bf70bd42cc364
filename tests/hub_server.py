"""A Hugging Face hub on the loopback interface, for tests: real folders, the hub's file API.

    with HubServer({"org/name": {"main": folder, "v1": older}, "datasets/org/set": …}) as hub:
        answer = hub.run(code, "argument", home=tmp_path / "home")

The client reads its settings when it is imported, hence the subprocess. Served are the calls of
`snapshot_download` and of `datasets.load_dataset`: revision -> commit, the file tree of a commit,
what is at some paths of it, and each file; weights are redirected to another address, as the hub
does with large files. The repository id of a data set starts with `datasets/`, as in its address.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_REDIRECTED = (".safetensors", ".bin")
_TIMEOUT_S = 10.0


@dataclass
class HubServer:
    """Serves repositories until the `with` block ends.

    Attributes:
        repositories: repository id -> revision name -> folder; `main` is the default branch.
        gated: repository id -> the token that opens it.
        requests: "METHOD path" of each request so far.
    """

    repositories: Mapping[str, Mapping[str, Path]]
    gated: Mapping[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> "HubServer":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_TIMEOUT_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def commit(self, repo_id: str, revision: str = "main") -> str:
        """The commit of a revision: a hash of its files, as in git."""
        digest = hashlib.sha1(repo_id.encode())
        for name, path in _files(self.repositories[repo_id][revision]).items():
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()

    def folder(self, repo_id: str, revision: str) -> Path | None:
        """The folder of a revision, by name or commit."""
        for name, folder in self.repositories[repo_id].items():
            if revision in (name, self.commit(repo_id, name)):
                return folder
        return None

    def run(self, code: str, *arguments: str, home: Path, **environment: str) -> Any:
        """What a Python process prints as JSON that has `home` as its cache."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=self.environment(home, **environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a process that uses this hub, with its cache under `home`."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
            and not name.lower().endswith("_proxy")
        }
        return inherited | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **more,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        match path.strip("/").split("/"):
            case ["api", "models", org, name]:
                self._info(f"{org}/{name}", "main")
            case ["api", "models", org, name, "revision", *revision]:
                self._info(f"{org}/{name}", "/".join(revision))
            case ["api", "models", org, name, "tree", revision]:
                self._tree(f"{org}/{name}", revision)
            case [org, name, "resolve", revision, *file]:
                self._file(f"{org}/{name}", revision, "/".join(file), redirect=True)
            case ["storage", org, name, revision, *file]:
                self._file(f"{org}/{name}", revision, "/".join(file), redirect=False)
            case ["api", "datasets", org, name]:
                self._info(f"datasets/{org}/{name}", "main")
            case ["api", "datasets", org, name, "revision", *revision]:
                self._info(f"datasets/{org}/{name}", "/".join(revision))
            case ["api", "datasets", org, name, "tree", revision, *folder]:
                self._tree(f"datasets/{org}/{name}", revision, "/".join(folder))
            case ["api", "datasets", org, name, "paths-info", revision]:
                self._paths(f"datasets/{org}/{name}", revision)
            case ["datasets", org, name, "resolve", revision, *file]:
                self._file(f"datasets/{org}/{name}", revision, "/".join(file), redirect=False)
            case _:
                self._send(404)

    def _open(self, repo_id: str, revision: str) -> Path | None:
        """The folder asked for; None after an answer that says why not."""
        if repo_id not in self.hub.repositories:
            self._send(401, headers={"X-Error-Code": "RepoNotFound"})
            return None
        token = self.hub.gated.get(repo_id)
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            self._send(403, headers={"X-Error-Code": "GatedRepo"})
            return None
        folder = self.hub.folder(repo_id, revision)
        if folder is None:
            self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
        return folder

    def _info(self, repo_id: str, revision: str) -> None:
        folder = self._open(repo_id, revision)
        if folder is not None:
            self._send_json(
                {
                    "id": repo_id,
                    "sha": self._commit(repo_id, folder),
                    "siblings": [{"rfilename": name} for name in _files(folder)],
                }
            )

    def _tree(self, repo_id: str, revision: str, under: str = "") -> None:
        folder = self._open(repo_id, revision)
        if folder is not None:
            files = {name: path for name, path in _files(folder).items() if _lies_in(name, under)}
            folders = {
                str(parent): None for name in files for parent in PurePosixPath(name).parents
            }
            names = [name for name in (*folders, *files) if _lies_in(name, under) and name != "."]
            if parse_qs(urlsplit(self.path).query).get("recursive", ["False"])[0].lower() != "true":
                names = [
                    name for name in names if str(PurePosixPath(name).parent) == (under or ".")
                ]
            self._send_json([_entry(name, files.get(name)) for name in names])

    def _paths(self, repo_id: str, revision: str) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        folder = self._open(repo_id, revision)
        if folder is None:
            return
        files = _files(folder)
        entries = []
        for name in asked:
            if name in files:
                entries.append(_entry(name, files[name]))
            elif any(_lies_in(file, name) for file in files):
                entries.append(_entry(name, None))
        self._send_json(entries)

    def _file(self, repo_id: str, revision: str, name: str, *, redirect: bool) -> None:
        folder = self._open(repo_id, revision)
        if folder is None:
            return
        path = _files(folder).get(name)
        headers = {"X-Repo-Commit": self._commit(repo_id, folder)}
        if path is None:
            self._send(404, headers={**headers, "X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        if redirect and name.endswith(_REDIRECTED):
            headers |= {
                "Location": f"/storage/{repo_id}/{revision}/{name}",
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": etag,
            }
            self._send(302, headers=headers)
            return
        headers["ETag"] = etag
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes="):
            self._send(200, content, headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        end = int(first) + len(part) - 1
        headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
        self._send(206, part, headers)

    def _commit(self, repo_id: str, folder: Path) -> str:
        revisions = self.hub.repositories[repo_id]
        return next(
            self.hub.commit(repo_id, name) for name, path in revisions.items() if path == folder
        )

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(name: str, path: Path | None) -> dict[str, Any]:
    """What the hub's API says of a file, or of a folder, which has no path here."""
    if path is None:
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest()}
    oid = hashlib.sha1(path.read_bytes()).hexdigest()
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid}


def _lies_in(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _files(folder: Path) -> dict[str, Path]:
    """Name in the repository -> file, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}
