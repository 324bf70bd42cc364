"""What a benchmark runs on: heads and their local backbone, from a name or a folder."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from siren_bench.records.kept import made_whole
from siren_bench.records.progress import progress_bar
from siren_export.heads.base import CONFIG_FILE, DECISION_FILE, WEIGHTS_FILE
from siren_export.heads.registry import load_artifact
from siren_export.sources.recipes import find_recipe, recipe_names
from siren_runtime.bundle.files import sha256_of
from siren_runtime.bundle.heads import PRIMARY_HEAD
from siren_runtime.errors import InputError

from .real_models import REAL_MODELS, RealModel, shape_of, write_real_model
from .shapes import SHAPES, Shape
from .synthetic import write_checkpoint, write_head

MAX_LENGTH = 512  # tokens, as in the released heads


@dataclass(frozen=True)
class Subject:
    """Heads and their local backbone, and what reports call them.

    Attributes:
        heads: Their folders by name, as siren export joins them; the first is the guard's score.
        head: The first one, its base_model.model_id the folder `backbone`, as llm-siren reads it.
        random: The heads' weights are random, so scores mean nothing.
    """

    heads: Mapping[str, str]
    head: Path
    backbone: Path
    description: str
    random: bool


def find_subject(
    name: str, folder: Path, backbone: Path | None = None, max_length: int = MAX_LENGTH
) -> Subject:
    """Find heads by the name of a shape, a trained model or a shipped guard, or in a folder.

    Args:
        folder: A folder to write in: a shape's checkpoint and head, which are used again where
            they are there already, or a copy of the head that points to its local backbone.
        backbone: The backbone's folder, in place of the head's own.
        max_length: Of a shape's head, in tokens.

    Raises:
        InputError: the name is none of these.
        ArtifactError, CheckpointError: the head is damaged or its backbone is not installed.
    """
    if name in SHAPES:
        return synthesize(SHAPES[name], folder, f"head-{max_length}", max_length)
    if name in REAL_MODELS:
        return _real(REAL_MODELS[name], folder, max_length)
    heads, recipe = heads_of(name), find_recipe(name)
    head = Path(heads[PRIMARY_HEAD])
    model_id = load_artifact(head).model_id
    backbone = backbone or (recipe.backbone() if recipe else Path(model_id))
    local_head = _pointed_to(backbone, head, folder / "head")
    description = f"{head.resolve().name}, backbone {model_id}"
    return Subject(heads, local_head, backbone, description, random=False)


def heads_of(name: str) -> dict[str, str]:
    """The folders, by name, of all heads of a shipped guard, or of the one in a folder.

    Raises:
        InputError: the name is neither.
    """
    recipe = find_recipe(name)
    if recipe is not None:
        return {PRIMARY_HEAD: str(recipe.artifact), **recipe.further}
    if not Path(name).is_dir():
        raise InputError(
            f"{name!r} is neither a shape ({', '.join(SHAPES)}), nor a trained model "
            f"({', '.join(REAL_MODELS)}), nor a shipped guard ({', '.join(recipe_names())}), nor "
            "the folder of a head"
        )
    return {PRIMARY_HEAD: name}


def folder_name(name: str, backbone: Path | None = None) -> str:
    """Name the folder of what is made of heads, as `find_subject` takes them.

    A shape's is its name, and so is a trained model's of which no guard is shipped. Another's
    tells its files too, so that heads that were trained or calibrated again, or others of that
    name, find nothing of the first.

    Raises:
        InputError: as `find_subject`.
    """
    if name in SHAPES or (name in REAL_MODELS and find_recipe(name) is None):
        return name
    heads = [Path(folder).resolve() for folder in heads_of(name).values()]
    files = [head / file for head in heads for file in (CONFIG_FILE, WEIGHTS_FILE, DECISION_FILE)]
    digests = [sha256_of(file) if file.is_file() else "" for file in files]
    made_of = "\n".join([str(backbone and backbone.resolve()), *digests])
    return f"{heads[0].name}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"


def synthesize(
    shape: Shape, folder: Path, head_name: str = "head", max_length: int = MAX_LENGTH
) -> Subject:
    """Write a random checkpoint and head of a true shape under `folder`, with a progress bar.

    What is there already, finished, is left as it is.
    """
    backbone, head = folder / "backbone", folder / head_name
    if not backbone.exists():
        with made_whole(backbone) as unfinished, progress_bar() as progress:
            write_checkpoint(unfinished, shape.config, progress=progress)
    if not head.exists():
        with made_whole(head) as unfinished:
            write_head(unfinished, shape, backbone, max_length=max_length)
    return _at_random(head, backbone, f"{shape.name}, random weights of the true shape")


def _real(model: RealModel, folder: Path, max_length: int) -> Subject:
    """Dequantize a trained model where that was not done yet, with the heads of the guard that is
    shipped of it, or a random one.
    """
    backbone, head = folder / "backbone", folder / f"head-{max_length}"
    if not backbone.exists():
        with made_whole(backbone) as unfinished, progress_bar() as progress:
            write_real_model(model, unfinished, progress)
    recipe = find_recipe(model.name)
    if recipe is not None and (recipe.artifact / CONFIG_FILE).is_file():
        local_head = _pointed_to(backbone, recipe.artifact, folder / "head")
        description = f"{model.name}, the shipped guard on its dequantized weights"
        return Subject(heads_of(model.name), local_head, backbone, description, random=False)
    if not head.exists():
        with made_whole(head) as unfinished:
            write_head(unfinished, shape_of(model, backbone), backbone, max_length=max_length)
    return _at_random(
        head, backbone, f"{model.name}, trained weights, a random head on every block"
    )


def _at_random(head: Path, backbone: Path, description: str) -> Subject:
    return Subject({PRIMARY_HEAD: str(head)}, head, backbone, description, random=True)


def _pointed_to(backbone: Path, head: Path, folder: Path) -> Path:
    """Write the same head to `folder`, its base_model.model_id the local backbone."""
    config = json.loads((head / CONFIG_FILE).read_bytes())
    config["base_model"] = {"model_id": str(backbone.resolve()), "revision": None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    (folder / WEIGHTS_FILE).write_bytes((head / WEIGHTS_FILE).read_bytes())
    return folder
