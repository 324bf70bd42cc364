"""What subcommands share: standard input, lines of output and of errors, exit statuses."""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, BinaryIO

import msgspec
import typer

from siren_runtime.errors import InputError

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 3, 130
_HARMLESS = "\n\u200c\u200d"  # a newline, joiners of emoji and scripts


def standard_input() -> BinaryIO:
    """Return standard input, made to wait: where it does not, "nothing yet" reads as the end.

    Raises:
        InputError: it is closed.
    """
    if sys.stdin is None:
        raise InputError("standard input is closed; pipe text in")
    with suppress(OSError):  # what stands in for it has no file descriptor
        os.set_blocking(sys.stdin.fileno(), True)
    return sys.stdin.buffer


def need(*modules: str) -> None:
    """See that modules are installed which a subcommand imports later, in the midst of its work.

    Called where the subcommand is imported, so that siren --help names the extra that brings them.

    Raises:
        ImportError: one is not; its message names it.
    """
    for name in modules:
        if find_spec(name) is None:
            raise ImportError(f"no module named {name!r}")


def need_engine() -> None:
    """See that something is installed which runs a score graph; as `need`."""
    if not any(map(find_spec, ("tensorrt", "tensorrt_rtx"))):
        need("onnxruntime")


def refuse_options(context: typer.Context, names: Iterable[str], without: str) -> None:
    """Refuse options that a command was given and would leave unread.

    Args:
        names: of the command's parameters.
        without: what they go with, which is not there.

    Raises:
        typer.BadParameter: one was given.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{name.replace('_', '-')} goes with {without}")


def write_json_line(fields: Mapping[str, Any]) -> None:
    """Write a JSON line on standard output, and send it on its way."""
    sys.stdout.buffer.write(msgspec.json.encode(fields) + b"\n")
    sys.stdout.buffer.flush()


def write_lines(text: str) -> None:
    """Write lines on standard output; control characters of hostile names stay harmless."""
    typer.echo(printable(text), nl=not text.endswith("\n"))


def report(message: str) -> None:
    """Print one line on standard error; control characters of hostile names stay harmless."""
    typer.echo(f"siren: {one_line(message)}", err=True)


@contextmanager
def warnings_reported() -> Iterator[None]:
    """Report what is warned of inside as lines on standard error, without places in code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: report(f"warning: {message}")
        yield


def one_line(text: str) -> str:
    """Return `text` in one line that is safe to show in a terminal."""
    return "".join(c if c.isprintable() else _code(c) for c in " ".join(text.split()))


def printable(text: str) -> str:
    """Escape control characters; keep newlines and joiners of emoji, and blanks as spaces."""
    return "".join(c if c.isprintable() or c in _HARMLESS else _code(c) for c in text)


def _code(character: str) -> str:
    return " " if character.isspace() else f"\\x{ord(character):02x}"
