"""The files of TLS, looked at before uvicorn takes them."""

import ssl
from pathlib import Path
from typing import Any

from siren_runtime.errors import InputError


def tls_options(
    key: Path | None, certificate: Path | None, authorities: Path | None
) -> dict[str, Any]:
    """uvicorn's options; clients need a certificate where authorities for theirs are given.

    Raises:
        InputError: as `check_tls`.
    """
    check_tls(key, certificate, authorities)
    tls = {"ssl_keyfile": key, "ssl_certfile": certificate, "ssl_ca_certs": authorities}
    return tls if authorities is None else {**tls, "ssl_cert_reqs": ssl.CERT_REQUIRED}


def check_tls(key: Path | None, certificate: Path | None, authorities: Path | None) -> None:
    """See that the files, if any are given, are what TLS needs.

    Raises:
        InputError: one is not there or no PEM, or a key and its certificate are not both given.
    """
    files = [path for path in (certificate, key, authorities) if path is not None]
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    if not files:
        return
    if key is None or certificate is None:
        raise InputError("TLS needs both --tls-key and --tls-cert")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if authorities is not None:
            context.load_verify_locations(authorities)
    except (OSError, ValueError) as error:  # which ssl.SSLError is
        raise InputError(
            f"{', '.join(map(str, files))}: expected a certificate and its own key, and CAs, in "
            f"PEM: {error}"
        ) from None
