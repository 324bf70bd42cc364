"""TLS by the command's options: who has no certificate of the server's CA does not get in."""

import ssl
from pathlib import Path

import httpx
import pytest

from certificates import certify
from served import command
from siren_runtime import Guard, InputError
from siren_serve.tls import tls_options

TEXT = "a text"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Certificates of one CA, for a server on the loopback and for a client; and a stranger's."""
    for name in ("ca", "stranger"):
        certify(tmp_path, name)
    for name in ("server", "client"):
        certify(
            tmp_path, name, "-CA", "ca.pem", "-CAkey", "ca.key",
            "-addext", "subjectAltName=IP:127.0.0.1",
            "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
    return tmp_path


def trusting(folder: Path, client: str | None = None) -> ssl.SSLContext:
    """What a client reaches the server by, with a certificate of its own or none."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if client is not None:
        context.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    return context


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_file_of_tls_alone_is_refused_and_not_left_unread(tmp_path: Path, place: int) -> None:
    (tmp_path / "file").touch()
    files: list[Path | None] = [None, None, None]
    files[place] = tmp_path / "file"
    with pytest.raises(InputError, match="--tls-key and --tls-cert"):
        tls_options(*files)


def test_scores_are_served_to_clients_of_the_ca_alone(
    bundle: Path, guard: Guard, folder: Path
) -> None:
    options = ("--tls-key", folder / "server.key", "--tls-cert", folder / "server.pem")
    known = trusting(folder, "client")
    with command(folder, bundle, *options, "--tls-ca", folder / "ca.pem", tls=known) as server:

        def ask(tls: ssl.SSLContext) -> float:
            answer = httpx.post(f"{server.url}/v1/score", json={"text": TEXT}, verify=tls)
            score: float = answer.json()["score"]
            return score

        assert ask(known) == pytest.approx(guard.score(TEXT).score, abs=1e-6)
        for unknown in (trusting(folder), trusting(folder, "stranger")):
            with pytest.raises(httpx.HTTPError):
                ask(unknown)
        with pytest.raises(httpx.HTTPError):  # whose CA nobody vouches for
            ask(ssl.create_default_context())
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http") + "/health/live")
