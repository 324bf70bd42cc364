"""A backbone's weights in safetensors files: model.safetensors, or shards with an index."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np

from siren_runtime.bundle.files import sha256_of
from siren_runtime.bundle.hub import advice_where_lacking
from siren_runtime.errors import CheckpointError

from .finite import all_finite
from .local_file import read_json
from .safetensors_file import SafetensorsFile
from .weights import Array, Blocks, TensorInfo

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_WEIGHT_DTYPES = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))
_SHARD_NAME = re.compile(r"[\w.+-]{1,200}\.safetensors", re.ASCII)
_PREFIX = re.compile(
    r"^(model\.language_model|language_model\.model|language_model|model|bert|roberta|deberta)\."
)
_LEGACY_NORM = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True, eq=False)
class SafetensorsWeights:
    """A `WeightSource` over the safetensors files of a folder.

    `tensors` maps each tensor's name without the prefix of the bare model (`_PREFIX`) to what it
    is; its `TensorInfo.name` is the stored name.
    """

    folder: Path
    source: str
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    _files: Mapping[str, SafetensorsFile] = field(repr=False)

    def read(self, name: str, rows: slice | None = None) -> Array:
        """As `WeightSource.read`; weights may be F32, F16 or BF16."""
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(
                f"{self.folder}: the weights have no tensor {name!r}, with or without the prefix "
                "of the bare model, such as 'model.' or 'bert.'; the checkpoint is incomplete or "
                "not what config.json says"
            )
        file = self._files[name]
        _check_weight_dtype(info, file.path)
        values = file.read(info.name, rows)
        if not all_finite(values):
            raise CheckpointError(
                f"{file.path}: tensor {info.name!r} holds NaN or infinite values; the checkpoint "
                "is damaged"
            )
        return values

    def block_layout(self, name: str) -> None:
        """As `WeightSource.block_layout`: no matrix is in blocks."""

    def read_blocks(self, name: str, rows: slice | None = None) -> Blocks:
        """As `WeightSource.read_blocks`; there is none to read."""
        raise ValueError(f"{name} is not stored in blocks")

    def digests(self) -> dict[str, str]:
        """The SHA-256 of every safetensors file of the folder, by its name."""
        return {path.name: sha256_of(path) for path in sorted(self.folder.glob("*.safetensors"))}


def open_safetensors(folder: Path, source: str) -> SafetensorsWeights:
    """Open the weights of a folder: read the headers of their files.

    Raises:
        CheckpointError: there are none, they are pickled, quantized or damaged, or two tensors
            have one name.
    """
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, SafetensorsFile] = {}
    for info, file in _open_files(folder):
        name = _normalise(info.name)
        if name in tensors:
            raise CheckpointError(
                f"{folder}: the weights hold both {tensors[name].name!r} and {info.name!r}, "
                "two forms of one name; keep the one that belongs to the model"
            )
        tensors[name] = info
        files[name] = file
    for name, info in tensors.items():
        if name.endswith((".weight", ".bias")):
            _check_weight_dtype(info, files[name].path)
    return SafetensorsWeights(folder, source, tensors, files)


def _open_files(folder: Path) -> list[tuple[TensorInfo, SafetensorsFile]]:
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if single.exists():
        file = SafetensorsFile(single, CheckpointError)
        return [(info, file) for info in file.tensors.values()]
    if index.exists():
        return _open_shards(index)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder}: the weights are pickled ({pickles[0]}), which can run code and is never "
            f"read; convert them to {WEIGHTS_FILE}. Where transformers is installed and you trust "
            "the file: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    advice = "weights in another format must be converted to safetensors first"
    if ggufs := sorted(path.name for path in folder.glob("*.gguf")):
        advice = f"to read a GGUF file, name it: {folder / ggufs[0]}"
    advice = advice_where_lacking(folder, WEIGHTS_FILE, INDEX_FILE, advice=advice)
    raise CheckpointError(f"{folder}: there is neither {WEIGHTS_FILE} nor {INDEX_FILE}; {advice}")


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _open_shards(index: Path) -> list[tuple[TensorInfo, SafetensorsFile]]:
    weight_map = read_json(index, _Index, CheckpointError).weight_map
    shards = {}
    for name, shard in weight_map.items():
        if not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{index}: weight_map[{name!r}] is {shard!r}; expected the plain name of a "
                ".safetensors file in the same folder"
            )
        if shard not in shards:
            shards[shard] = SafetensorsFile(index.parent / shard, CheckpointError)
        if name not in shards[shard].tensors:
            raise CheckpointError(
                f"{index}: weight_map puts tensor {name!r} in {shard}, which does not hold it; "
                "the index and the shards are of different checkpoints"
            )
    held: dict[str, str] = {}
    for shard, file in shards.items():
        for name in file.tensors:
            if held.setdefault(name, shard) != shard:
                raise CheckpointError(
                    f"{index}: both {held[name]} and {shard} hold a tensor {name!r}; remove the "
                    "wrong one, or save the checkpoint again"
                )
    return [(shards[shard].tensors[name], shards[shard]) for name, shard in weight_map.items()]


def prefix_of(name: str) -> str:
    """The base model's prefix that a stored name has; "" where it has none."""
    match = _PREFIX.match(name)
    return match[0] if match else ""


def _normalise(name: str) -> str:
    """Drop the base model's prefix, and name the norms of old BERT checkpoints as new ones do."""
    name = _PREFIX.sub("", name)
    stem, dot, leaf = name.rpartition(".")
    if stem.endswith("LayerNorm") and leaf in _LEGACY_NORM:
        return f"{stem}{dot}{_LEGACY_NORM[leaf]}"
    return name


def _check_weight_dtype(info: TensorInfo, path: Path) -> None:
    if info.dtype not in _WEIGHT_DTYPES:
        raise CheckpointError(
            f"{path}: tensor {info.name!r} is {info.dtype}; a backbone's weights must be F32, F16 "
            "or BF16, so use a checkpoint that is not quantized"
        )
