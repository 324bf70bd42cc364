"""The guards that this project ships, by name: recipes, and the bundles that exports make of them.

A recipe is a folder with a recipe.json and a head. The recipes lie in engines/ of a checkout; an
installation has them as the package siren_engines.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

from siren_runtime.errors import BundleError, InputError

from .hub import resolve_folder
from .manifest import MANIFEST_FILE
from .reader import BUNDLE_PATTERNS

RECIPE_FILE = "recipe.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


def _engines() -> tuple[Path | None, bool]:
    """The folder of the recipes, and whether it is a checkout's, where bundles may be written."""
    runtime, checkout = Path(__file__).resolve().parents[2:4]
    if runtime.name == "runtime" and (checkout / "engines" / "__init__.py").is_file():
        return checkout / "engines", True
    spec = find_spec("siren_engines")
    if spec is None or not spec.submodule_search_locations:
        return None, False
    return Path(spec.submodule_search_locations[0]), False


ENGINES, IN_CHECKOUT = _engines()


def shipped_names() -> list[str]:
    """The names of the shipped guards."""
    if ENGINES is None:
        return []
    return sorted(path.parent.name for path in ENGINES.glob(f"*/{RECIPE_FILE}"))


def recipe_folder(name: str) -> Path | None:
    """The folder of a shipped guard's recipe; None if none has that name."""
    if ENGINES is None or not _NAME.fullmatch(name) or name not in shipped_names():
        return None
    return ENGINES / name


def default_bundle(name: str) -> Path:
    """Where a shipped guard's bundle lands unless another place is asked for.

    That is engines/NAME/bundle in a checkout, else NAME in the folder where one is.
    """
    return ENGINES / name / "bundle" if ENGINES is not None and IN_CHECKOUT else Path(name)


def shipped_bundle(source: str | os.PathLike[str]) -> Path | None:
    """The bundle of the shipped guard that a source names, exported or not; None if it names none.

    A folder of that name goes before a shipped guard.
    """
    if isinstance(source, str) and recipe_folder(source) and not Path(source).is_dir():
        return default_bundle(source)
    return None


def find_bundle(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """Return the folder that a bundle's source names, downloading it where it must.

    Args:
        source: a folder, a shipped guard's name as `shipped_bundle` takes it, or the id of a hub
            repository.
        revision: of a hub repository.

    Raises:
        BundleError: there is none, or the shipped guard was not exported yet.
        InputError: `source` is no string and no path.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"a bundle is named by a str or a path, found {type(source).__name__}")
    bundle = shipped_bundle(source)
    if bundle is None:
        return resolve_folder(
            source, revision=revision, patterns=BUNDLE_PATTERNS, error=BundleError
        )
    if not (bundle / MANIFEST_FILE).is_file():
        raise BundleError(
            f"{source!r} is shipped as a recipe, and there is no bundle at {bundle.absolute()} "
            f"yet; make it with siren export {source}, or pass the folder of one"
        )
    return bundle
