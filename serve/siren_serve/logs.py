"""Logs: one JSON object a line on standard error, without any text that was scored."""

import logging
import sys
from datetime import datetime, timezone
from typing import Any

import msgspec

_OWN = "siren_serve", "siren_runtime"
access = logging.getLogger("siren_serve.access")
_log = logging.getLogger("siren_serve")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # A message may quote what was scored, so places in code only.
            line["exception"] = record.exc_info[0].__name__
            line["places"] = _places(record.exc_info[2])
        return msgspec.json.encode(line).decode()


def _places(traceback: Any) -> list[str]:
    found = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        found.append(f"{code.co_filename}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return found


def configure(level: str) -> None:
    """Let the loggers of this process write JSON from `level` on, which is info or above.

    Others write paths of requests at info, httpx and uvicorn's access log among them. So all but
    uvicorn, without that log, begin at warning.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    handler.addFilter(_has_no_path)
    from_level: int = getattr(logging, level.upper())
    others = max(from_level, logging.WARNING)
    logging.basicConfig(level=others, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in (*_OWN, "uvicorn"):
        logging.getLogger(name).setLevel(from_level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], name != "uvicorn.access"


def _has_no_path(record: logging.LogRecord) -> bool:
    """Whether a record is none of uvicorn's of a WebSocket, which have its path and query."""
    is_of_socket = record.name == "uvicorn.error" and "WebSocket" in str(record.msg)
    return record.levelno > logging.INFO or not is_of_socket


def event(message: str, **fields: Any) -> None:
    """Log that something happened to the server."""
    _log.info(message, extra={"fields": fields})


def alarm(message: str, **fields: Any) -> None:
    """Log that something happened which its operator must see."""
    _log.warning(message, extra={"fields": fields})


def failure(message: str, **fields: Any) -> None:
    """Log that the server could not do what it should."""
    _log.error(message, extra={"fields": fields})
