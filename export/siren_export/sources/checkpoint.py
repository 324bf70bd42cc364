"""A backbone checkpoint in Hugging Face form: config.json, tokenizer.json, safetensors weights.

Nothing in it is ever executed: pickled weights are refused, and code that the config names
(`auto_map`) is neither fetched nor imported.
"""

import hashlib
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from siren_runtime.bundle.files import sha256_of
from siren_runtime.bundle.hub import resolve_folder
from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.errors import CheckpointError

from .local_file import read_bytes, read_json
from .safetensors import INDEX_FILE, open_safetensors
from .weights import WeightSource

CONFIG_FILE = "config.json"
# `model*` leaves out the second copy in another layout (consolidated.safetensors) that some
# repositories hold. tokenizer_config.json is for the reference that an export is verified with.
_PATTERNS = (CONFIG_FILE, TOKENIZER_FILE, "tokenizer_config.json", "model*.safetensors", INDEX_FILE)

_MAX_TOKENIZER_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A backbone on disk.

    `revision` is the commit of a hub repository, None for a local folder. `config` is
    config.json, of which only `model_type` is checked.
    """

    path: Path
    source: str
    revision: str | None
    config: dict[str, Any] = field(repr=False)
    tokenizer_json: bytes = field(repr=False)
    weights: WeightSource = field(repr=False)

    def digest(self) -> str:
        """Return the SHA-256 of what scores depend on: config, tokenizer and weights, by name."""
        digests = self.weights.digests()
        for name in (CONFIG_FILE, TOKENIZER_FILE):
            digests[name] = sha256_of(self.path / name)
        return hashlib.sha256(msgspec.json.encode(dict(sorted(digests.items())))).hexdigest()


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
    return Checkpoint(
        path=folder,
        source=str(source),
        revision=None if Path(source).is_dir() else folder.name,
        config=config,
        tokenizer_json=tokenizer_json,
        weights=open_safetensors(folder, str(source)),
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
