"""Trained models as Hugging Face folders that every peer can load.

They are the backbones of shipped guards whose recipes have them as GGUF files, dequantized: each
with the guard's head, and as NAME-all-blocks with a random one that reads every block. For time and
memory the values of a head do not matter.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors
from tokenizers import Tokenizer

from siren_export.sources.gguf_checkpoint import GgufCheckpoint, open_gguf
from siren_export.sources.gguf_file import GgufFile
from siren_export.sources.recipes import find_recipe
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError

from .shapes import Shape

GGUF_FILE = "model.gguf"
_CHAT_TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class RealModel:
    """A trained model.

    Attributes:
        name: What the command line calls it.
        guard: Whose recipe has it. It comes with the guard's head where it has its name.
        architecture: Of transformers, for config.json.
        channels_per_layer, hidden_dims: Of a random head, as `Shape` has them.
    """

    name: str
    guard: str
    architecture: str
    channels_per_layer: int
    hidden_dims: tuple[int, ...]


REAL_MODELS = {
    name: RealModel(name, guard, architecture, 250, (512, 256))
    for guard, architecture in (
        ("smollm2", "LlamaForCausalLM"),
        ("gemma3-270m", "Gemma3ForCausalLM"),
    )
    for name in (guard, f"{guard}-all-blocks")
}


def write_real_model(model: RealModel, folder: Path, progress: Progress = silent) -> None:
    """Write the model's GGUF file, its weights in float32, config.json and tokenizer to `folder`.

    Raises:
        InputError: this installation has no recipe of it.
        CheckpointError: its package is not installed, or the file in it is damaged.
    """
    recipe = find_recipe(model.guard)
    if recipe is None:
        raise InputError(f"{model.guard}: this installation has no recipe of the guard")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / GGUF_FILE
    shutil.copyfile(recipe.backbone(), file)
    checkpoint = open_gguf(file, model.name)
    tensors = dict(_tensors(checkpoint, progress))
    safetensors.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**checkpoint.config, "architectures": [model.architecture], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": _padding(checkpoint)}
    template = GgufFile(file).metadata.get(_CHAT_TEMPLATE)
    if template is not None:
        settings["chat_template"] = str(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def shape_of(model: RealModel, backbone: Path) -> Shape:
    """The shape of the head over the model in `backbone`."""
    config = json.loads((backbone / "config.json").read_bytes())
    return Shape(model.name, config, model.channels_per_layer, model.hidden_dims)


def _padding(checkpoint: GgufCheckpoint) -> str:
    """The token that llm-siren pads with: the file's, or the one that ends a text."""
    config = checkpoint.config
    number = config["pad_token_id" if "pad_token_id" in config else "eos_token_id"]
    return str(Tokenizer.from_buffer(checkpoint.tokenizer_json).id_to_token(int(number)))


def _tensors(checkpoint: GgufCheckpoint, progress: Progress) -> Iterator[tuple[str, np.ndarray]]:
    weights = checkpoint.weights
    names = sorted(weights.tensors)
    for done, name in enumerate(names):
        values = np.ascontiguousarray(weights.read(name), np.float32)
        yield (name if name.startswith("lm_head.") else f"model.{name}"), values
        progress("dequantizing", done + 1, len(names))
