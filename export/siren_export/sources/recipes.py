"""The guards that this project ships, by name: what their recipe.json says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from siren_runtime.bundle.shipped import (
    RECIPE_FILE,
    default_bundle,
    recipe_folder,
    shipped_names,
)
from siren_runtime.errors import ArtifactError

from .local_file import read_json
from .packaged import Joined, Part, find_parts, join_parts

_CONFIG_FILE = "siren_config.json"
CATEGORIES = "categories"  # the folder, and the name, of the head that tells kinds of harm


class _Backbone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    requirement: str  # what stands behind `pip install`
    parts: Annotated[list[Part], msgspec.Meta(min_length=1)]  # a folder, a file, or its parts
    joined: Joined | None = None  # what several parts make

    def __post_init__(self) -> None:
        if (self.joined is None) != (len(self.parts) == 1):
            raise ValueError("`joined` is for several parts, which need it")


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

        A file that comes in parts is joined in the cache folder.

        Raises:
            CheckpointError: a package is not installed or damaged, or the parts cannot be joined.
        """
        backbone = self._backbone
        paths = find_parts(backbone.parts, f"the backbone of {self.name!r}", backbone.requirement)
        if backbone.joined is None:
            return paths[0]
        return join_parts(paths, backbone.joined, backbone.requirement)


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
