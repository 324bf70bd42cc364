"""Heads as they are named on a command line."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from siren_export.heads.base import Artifact
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.recipes import find_recipe, recipe_names
from siren_runtime.bundle.heads import HEAD_NAME, PRIMARY_HEAD
from siren_runtime.errors import InputError


def load_heads(named: Mapping[str, str]) -> Artifact:
    """Load heads by name, the first of which is the primary one.

    Raises:
        InputError, ArtifactError: one cannot be found, or they do not read the same of a text.
    """
    return together(
        {name: load_artifact(_existing(_artifact_of(head))) for name, head in named.items()}
    )


def named_heads(heads: Sequence[str]) -> dict[str, str]:
    """Each head by its name: the given one, else harm for the first and its folder's for others."""
    named: dict[str, str] = {}
    for place, given in enumerate(heads):
        name, equals, head = given.partition("=")
        if not equals or not re.fullmatch(HEAD_NAME, name):
            head = given
            name = Path(given.rstrip("/")).name if place else PRIMARY_HEAD
        if not re.fullmatch(HEAD_NAME, name):
            raise typer.BadParameter(
                f"{given!r}: {name!r} cannot name a head; give NAME={given}, a name of letters, "
                "digits, _ and -"
            )
        if name in named:
            raise typer.BadParameter(f"two heads are named {name!r}; give NAME=HEAD")
        named[name] = head
    return named


def _artifact_of(head: str) -> str:
    recipe = find_recipe(head)
    return str(recipe.artifact) if recipe else head


def _existing(head: str) -> str:
    """Say what the names are, where a mistyped one would be taken for a folder."""
    if "/" not in head and not Path(head).exists():
        raise InputError(
            f"{head!r} is neither a folder, nor a repo id (org/name), nor a shipped guard "
            f"({', '.join(recipe_names()) or 'none beside this installation'})"
        )
    return head
