"""A backbone checkpoint: config.json, tokenizer.json and weights, in safetensors, GGUF or ONNX.

Nothing in it is executed here: pickled weights are refused, and so is a checkpoint that names
code of its own (`auto_map`), unless the caller trusts that. Then transformers runs it when the
export is verified: for llm-siren, or in its place where llm-siren cannot load the class. The graphs
are those of the standard class all the same. Of an ONNX file, whose graph is its own, it is the
tokenizer's code alone; of a GGUF file nothing runs any, so none is taken.
"""

import hashlib
import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from siren_runtime.bundle.files import ReadFailures, sha256_of
from siren_runtime.bundle.hub import resolve_folder
from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.errors import CheckpointError, install_hint

from .local_file import read_json
from .onnx_file import OnnxFile, OnnxWeights, find_graph, open_graph
from .safetensors import INDEX_FILE, open_safetensors
from .tokenizer import (
    ADDED_TOKENS_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    read_tokenizer,
)
from .weights import WeightSource

CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
# `model*` leaves out the second copy in another layout (consolidated.safetensors) that some
# repositories hold.
_PATTERNS = (
    CONFIG_FILE,
    ADAPTER_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    "chat_template.jinja",
    "model*.safetensors",
    INDEX_FILE,
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A backbone on disk.

    `path` is its folder, or a GGUF file. `revision` is the commit of a hub repository, None for
    what is local. `config` is config.json, of which only `model_type` is checked. `tokenizer_json`
    is tokenizer.json with the tokens that its companions declare. `remote_code` says where the
    checkpoint names code of its own, which its caller trusts. `gguf_tokenizer` is what a GGUF file
    calls its tokenizer, where that is the one that counts. `onnx` is there where the graph is not
    authored here but taken from an ONNX file.
    """

    path: Path
    source: str
    revision: str | None
    config: dict[str, Any] = field(repr=False)
    tokenizer_json: bytes = field(repr=False)
    weights: WeightSource = field(repr=False)
    remote_code: str | None = None
    gguf_tokenizer: str | None = None
    onnx: OnnxFile | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return _is_gguf(self.path)

    @property
    def vocab_size(self) -> int | None:
        """The rows of the token embedding, as graph or config have it; None where neither does."""
        if self.onnx is not None and self.onnx.vocab_size is not None:
            return self.onnx.vocab_size
        rows = (self.config.get("text_config") or self.config).get("vocab_size")
        return rows if isinstance(rows, int) else None

    def digest(self) -> str:
        """Return the SHA-256 of what scores depend on: config, tokenizer and weights, by name."""
        digests = self.weights.digests()
        if self.onnx is None and not self.is_gguf:
            digests[CONFIG_FILE] = sha256_of(self.path / CONFIG_FILE)
        digests[TOKENIZER_FILE] = hashlib.sha256(self.tokenizer_json).hexdigest()
        return hashlib.sha256(msgspec.json.encode(dict(sorted(digests.items())))).hexdigest()


def load_checkpoint(
    source: str | PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Open a backbone: read its config and tokenizer, and the headers of its weight files.

    Args:
        source: the checkpoint's folder, its hub repository id, or a GGUF or ONNX file.
        revision: branch, tag or commit of the hub repository; the default is its main branch.
        trust_remote_code: take a checkpoint that names code of its own. None of it is run here;
            an export of it must be verified, and for that transformers runs it.

    Raises:
        CheckpointError: the checkpoint cannot be found, has no safetensors weights or fast
            tokenizer, is quantized otherwise than in a GGUF file, is damaged, is an adapter to
            another one, or names code that is not trusted.
    """
    path = Path(source).expanduser()
    with ReadFailures(path, CheckpointError):
        is_gguf, graph = _is_gguf(path), find_graph(path)
    if is_gguf:
        return _load_gguf(path)
    if graph is not None:
        return _load_onnx(graph, str(source), trust_remote_code)
    folder = resolve_folder(
        source,
        revision=revision,
        patterns=(*_PATTERNS, "*.py") if trust_remote_code else _PATTERNS,
        error=CheckpointError,
        allow_symlinks=True,
    )
    config = _read_config(folder / CONFIG_FILE)
    if (folder / ADAPTER_FILE).exists():
        raise CheckpointError(
            f"{folder / ADAPTER_FILE}: an adapter lies beside the weights, and whether "
            "transformers applies it depends on what is installed; merge it into the weights, or "
            "remove it"
        )
    remote_code = _trusted_code(folder, config, trust_remote_code)
    tokenizer_json = read_tokenizer(folder, config)
    return Checkpoint(
        path=folder,
        source=str(source),
        revision=None if path.is_dir() else folder.name,
        config=config,
        tokenizer_json=tokenizer_json,
        weights=open_safetensors(folder, str(source)),
        remote_code=remote_code,
    )


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def _load_gguf(path: Path) -> Checkpoint:
    try:
        from .gguf_checkpoint import open_gguf
    except ImportError as error:
        raise CheckpointError(
            f"{path}: reading a GGUF file takes the gguf package ({error}); {install_hint('gguf')}"
        ) from None
    found = open_gguf(path, str(path))
    code = _remote_code(path.parent, {}) if found.tokenizer is None else None
    if code is not None:
        raise CheckpointError(
            f"{code}: the tokenizer beside the GGUF file names code of its own, which nothing runs "
            "here; remove the key where the standard class is meant"
        )
    return Checkpoint(
        path=path,
        source=str(path),
        revision=None,
        config=found.config,
        tokenizer_json=found.tokenizer_json,
        weights=found.weights,
        gguf_tokenizer=found.tokenizer,
    )


def _load_onnx(path: Path, source: str, trust_remote_code: bool) -> Checkpoint:
    file = open_graph(path)
    remote_code = _trusted_code(path.parent, {}, trust_remote_code)  # of its tokenizer
    return Checkpoint(
        path=path.parent,
        source=source,
        revision=None,
        config=file.config,
        tokenizer_json=read_tokenizer(path.parent, file.config),
        weights=OnnxWeights(file, source),
        remote_code=remote_code,
        onnx=file,
    )


def _trusted_code(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> str | None:
    """As `_remote_code`.

    Raises:
        CheckpointError: there is code, and it is not trusted.
    """
    remote_code = _remote_code(folder, config)
    if remote_code is not None and not trust_remote_code:
        raise CheckpointError(
            f"{remote_code}: the checkpoint names code of its own, which transformers would run "
            "in place of the standard class; give --trust-remote-code to run it when the export is "
            "verified, or remove the key where the standard class is meant"
        )
    return remote_code


def _remote_code(folder: Path, config: dict[str, Any]) -> str | None:
    """Which file names code and how, or None where none does."""
    path = folder / TOKENIZER_CONFIG_FILE
    tokenizer_config = read_json(path, dict[str, Any], CheckpointError) if path.exists() else {}
    for name, keys in ((CONFIG_FILE, config), (TOKENIZER_CONFIG_FILE, tokenizer_config)):
        if keys.get("auto_map"):
            return f"{folder / name}: auto_map is {json.dumps(keys['auto_map'])[:200]}"
    return None


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
