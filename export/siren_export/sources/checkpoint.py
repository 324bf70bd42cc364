"""A backbone checkpoint in Hugging Face form: config.json, tokenizer.json, safetensors weights.

Nothing in it is ever executed: pickled weights are refused, and code that the config names
(`auto_map`) is neither fetched nor imported.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from tokenizers import Tokenizer

from siren_runtime.bundle.hub import resolve_folder
from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.errors import CheckpointError

from .finite import all_finite
from .local_file import read_bytes, read_json
from .safetensors_file import Array, SafetensorsFile, TensorInfo

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# `model*` leaves out the second copy in another layout (consolidated.safetensors) that some
# repositories hold. tokenizer_config.json is for the reference that an export is verified with.
_PATTERNS = (CONFIG_FILE, TOKENIZER_FILE, "tokenizer_config.json", "model*.safetensors", INDEX_FILE)

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_MAX_TOKENIZER_BYTES = 256 << 20
_WEIGHT_DTYPES = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))
_SHARD_NAME = re.compile(r"[\w.+-]{1,200}\.safetensors", re.ASCII)
_PREFIX = re.compile(r"^(model|bert)\.")
_LEGACY_NORM = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A backbone on disk.

    `revision` is the commit of a hub repository, None for a local folder. `config` is
    config.json, of which only `model_type` is checked. `tensors` maps each tensor's name without
    a leading `model.` or `bert.` to what it is; its `TensorInfo.name` is the stored name.
    """

    path: Path
    source: str
    revision: str | None
    config: dict[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    tokenizer_json: bytes = field(repr=False)
    _files: Mapping[str, SafetensorsFile] = field(repr=False)

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a weight, or some rows of its first axis, in its stored dtype.

        Nothing else of the file is read or kept.

        Args:
            name: a key of `tensors`.
            rows: a slice of step 1.

        Raises:
            CheckpointError: there is no such tensor, it is no F32, F16 or BF16, it cannot be
                read, or it holds a value that is not finite.
        """
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(
                f"{self.path}: the weights have no tensor {name!r}, with or without a leading "
                "'model.' or 'bert.'; the checkpoint is incomplete or not what config.json says"
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


def load_checkpoint(source: str | PathLike[str], *, revision: str | None = None) -> Checkpoint:
    """Open a backbone: read its config and tokenizer, and the headers of its weight files.

    Args:
        source: the checkpoint's folder, or its hub repository id.
        revision: branch, tag or commit of the hub repository; the default is its main branch.

    Raises:
        CheckpointError: the checkpoint cannot be found, has no safetensors weights or fast
            tokenizer, is quantized, or is damaged.
    """
    folder = resolve_folder(
        source,
        revision=revision,
        patterns=_PATTERNS,
        error=CheckpointError,
        allow_symlinks=True,
    )
    config = _read_config(folder / CONFIG_FILE)
    tokenizer_json = _read_tokenizer(folder / TOKENIZER_FILE)
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, SafetensorsFile] = {}
    for info, file in _open_weights(folder):
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
    return Checkpoint(
        path=folder,
        source=str(source),
        revision=None if Path(source).is_dir() else folder.name,
        config=config,
        tensors=tensors,
        tokenizer_json=tokenizer_json,
        _files=files,
    )


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path, dict[str, Any], CheckpointError)
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(
            f"{path}: model_type is {config.get('model_type')!r}; expected the name of an "
            "architecture, such as 'qwen3'"
        )
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise CheckpointError(
            f"{path}: the checkpoint is quantized (quantization_config.quant_method is "
            f"{method!r}); use the one with F32, F16 or BF16 weights that it was made from"
        )
    return config


def _read_tokenizer(path: Path) -> bytes:
    if not path.exists():
        raise CheckpointError(
            f"{path}: there is no such file; a fast tokenizer is needed. Where transformers is "
            "installed, make one by AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    data = read_bytes(path, CheckpointError, limit=_MAX_TOKENIZER_BYTES)
    try:
        Tokenizer.from_str(data.decode("utf-8"))
    except (KeyboardInterrupt, SystemExit):
        raise
    # tokenizers raises plain Exception, and a panic of its Rust code is not even that.
    except BaseException as failure:
        raise CheckpointError(f"{path}: not a tokenizer that can be loaded: {failure}") from failure
    return data


def _open_weights(folder: Path) -> list[tuple[TensorInfo, SafetensorsFile]]:
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
    raise CheckpointError(
        f"{folder}: there is neither {WEIGHTS_FILE} nor {INDEX_FILE}; weights in another format "
        "must be converted to safetensors first"
    )


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
    return [(shards[shard].tensors[name], shards[shard]) for name, shard in weight_map.items()]


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
