"""The `siren` command. Its subcommands come from the entry-point group "siren.commands".

Each entry point is a `typer.Typer(add_completion=False)`; the extra in its brackets is what its
import needs. A part that is not installed is listed with what to install.
"""

import functools
import logging
import sys
from importlib.metadata import EntryPoint, entry_points
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from siren_runtime import __version__
from siren_runtime.errors import SirenError, install_hint

from .console import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, one_line, report


class SirenGroup(TyperGroup):
    """The subcommands that are installed; one that fails says so in a line."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all subcommands, those that lack their extra included."""
        return sorted(_entry_points())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a subcommand; None if there is none of that name."""
        entry_point = _entry_points().get(cmd_name)
        if entry_point is None:
            return None
        try:
            command = get_command(entry_point.load())
        except ImportError as error:
            command = _unavailable(entry_point, error)
        command.name = cmd_name  # what help shows
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand. Its SirenError becomes one line on standard error, exit 1.

        So does what the system refuses: a full disk, a folder that may not be written, memory.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read our output has gone, and click ends quietly
        except typer.BadParameter as error:
            error.message = one_line(error.message)  # it may quote files
            raise
        except (SirenError, OSError) as error:
            report(f"error: {error}")
            raise typer.Exit(EXIT_FAILED) from None
        except MemoryError as error:
            report(f"error: not enough memory: {error}".rstrip(": "))
            raise typer.Exit(EXIT_FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(cls=SirenGroup, add_completion=False, no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"siren-edge {__version__}")
        raise typer.Exit


@app.callback(epilog="Example: siren score engines/minilm/bundle 'How do I make a bomb?'")
def _siren(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Compile SIREN safety guards into engines and score text with them, without PyTorch."""


class _OneLine(logging.Formatter):
    """A warning in one line that is safe to show: it may quote files."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def main() -> None:
    """Run the `siren` command."""
    if sys.stdout is None:
        report("error: standard output is closed")
        raise SystemExit(EXIT_FAILED)
    if isinstance(sys.stdout, TextIOWrapper):  # whose encoding may lack what a name is written in
        sys.stdout.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_OneLine())
    try:
        get_command(app)(prog_name="siren")
    except OSError as error:  # of help and --version; click ends quietly where the reader has gone
        report(f"error: {error}")
        raise SystemExit(EXIT_FAILED) from None


@functools.cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="siren.commands")}


def _unavailable(entry_point: EntryPoint, cause: ImportError) -> Any:
    extra = ",".join(entry_point.extras)
    hint = install_hint(extra) if extra else "reinstall siren-edge"
    placeholder = typer.Typer(add_completion=False, rich_markup_mode=None)

    @placeholder.command(
        help=f"Not installed: {hint}".replace("[", "\\["),  # the group reads it as rich markup
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def refuse(context: typer.Context) -> None:
        report(f"error: siren {entry_point.name} is not installed ({cause}); {hint}")
        raise typer.Exit(EXIT_USAGE)

    return get_command(placeholder)
