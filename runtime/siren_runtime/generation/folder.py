"""A model folder of onnxruntime-genai: what its config says, and which files it holds."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from siren_runtime.bundle.external_data import external_data_locations
from siren_runtime.bundle.files import ReadFailures
from siren_runtime.bundle.manifest import check_relative
from siren_runtime.bundle.reader import check_no_pointer, sha256
from siren_runtime.errors import BundleError, SirenError

CONFIG_FILE = "genai_config.json"

_MAX_CONFIG_BYTES = 4 << 20
# What says which tokens a text is, in the chat template or without.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class _Inputs(msgspec.Struct, frozen=True):
    input_ids: str = "input_ids"


class _Outputs(msgspec.Struct, frozen=True):
    logits: str = "logits"
    present_key_names: str = "present.%d.key"


class _Window(msgspec.Struct, frozen=True):
    window_size: int = 0


class _SessionOptions(msgspec.Struct, frozen=True):
    intra_op_num_threads: int | None = None


class _Decoder(msgspec.Struct, frozen=True):
    filename: str
    hidden_size: int
    num_hidden_layers: int
    head_size: int
    inputs: _Inputs = _Inputs()
    outputs: _Outputs = _Outputs()
    sliding_window: _Window | None = None
    session_options: _SessionOptions = _SessionOptions()


class _Model(msgspec.Struct, frozen=True):
    type: str
    context_length: int
    decoder: _Decoder
    pad_token_id: int = 0


class _Search(msgspec.Struct, frozen=True):
    """How tokens are chosen, as far as it says which of them the engine reads in a pass."""

    batch_size: int = 1
    num_beams: int = 1
    num_return_sequences: int = 1
    chunk_size: int = 0


class _Config(msgspec.Struct, frozen=True):
    model: _Model
    search: _Search = _Search()


_ONE_SEQUENCE = _Search()


@dataclass(frozen=True)
class GenaiFolder:
    """A model folder as onnxruntime-genai's model builder makes it, of one decoder's graph.

    Attributes:
        path: the folder.
        graph: the file of the decoder's graph.
        weights: the files that the graph takes weights from.
        model_type: as onnxruntime-genai names it, such as "llama".
        blocks, hidden_size, head_size: of the decoder.
        window: tokens that blocks with a window look back over; 0 where none has one.
        padding: the token that stands behind shorter rows of a batch.
        context_length: how many tokens prompt and response may have together.
        threads: of the CPU, as its config says; None where it does not.
        tokens, logits: the input of token ids and the output of logits.
        cache_keys: of each block, the output that holds its keys.
    """

    path: Path
    graph: str
    weights: tuple[str, ...]
    model_type: str
    blocks: int
    hidden_size: int
    head_size: int
    window: int
    padding: int
    context_length: int
    threads: int | None
    tokens: str
    logits: str
    cache_keys: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        """The names of all files in the folder, sorted."""
        return sorted(path.name for path in self.path.iterdir() if path.is_file())

    def digest(self) -> str:
        """The SHA-256 that names the engine: of its graph's and its weights' own, in hexadecimal.

        Raises:
            BundleError: a file cannot be read.
        """
        return engine_digest([sha256(self.path / name) for name in (self.graph, *self.weights)])

    def tokenizer_digest(self) -> str:
        """The SHA-256 that names the tokenizer and the chat template: of their files, as many as
        there are, in hexadecimal.

        Raises:
            BundleError: a file cannot be read.
        """
        there = [name for name in _TOKENIZER_FILES if (self.path / name).is_file()]
        told = [f"{name} {sha256(self.path / name)}" for name in there]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()


def engine_digest(digests: list[str]) -> str:
    """The digest of an engine by those of its files, the graph's first."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_folder(path: Path, error: type[SirenError] = BundleError) -> GenaiFolder:
    """Read a model folder of onnxruntime-genai.

    Raises:
        error: it is none, one of several graphs, or damaged; a file is a git LFS pointer; or its
            search takes several sequences, or reads prompts in parts.
    """
    config_path = path / CONFIG_FILE
    with ReadFailures(config_path, error):
        is_there = config_path.is_file()
    if not is_there:
        raise error(
            f"{path}: not a model folder of onnxruntime-genai, which holds {CONFIG_FILE}; make one "
            "with python -m onnxruntime_genai.models.builder"
        )
    check_no_pointer(config_path, error)
    with ReadFailures(config_path, error):
        if config_path.stat().st_size > _MAX_CONFIG_BYTES:
            raise error(f"{config_path}: over {_MAX_CONFIG_BYTES:,} bytes")
        data = config_path.read_bytes()
    try:
        config = msgspec.json.decode(data, type=_Config)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
        raise error(
            f"{config_path}: not a decoder's config that is known here: {failure}"
        ) from None
    _check_search(config.search, config_path, error)
    for name in _TOKENIZER_FILES:
        if (path / name).is_file():
            check_no_pointer(path / name, error)
    model, decoder = config.model, config.model.decoder
    check_relative(decoder.filename, str(config_path))
    if "/" in decoder.filename:
        raise error(
            f"{config_path}: decoder.filename is {decoder.filename!r}; expected a file beside it: "
            "put the graph and its weights there, and name the graph so"
        )
    caches = decoder.outputs.present_key_names
    if not 1 <= decoder.num_hidden_layers <= 10_000 or "%d" not in caches:
        raise error(f"{config_path}: decoder has no blocks, or names no cache with a %d")
    return GenaiFolder(
        path=path,
        graph=decoder.filename,
        weights=_weights(path / decoder.filename, error),
        model_type=model.type,
        blocks=decoder.num_hidden_layers,
        hidden_size=decoder.hidden_size,
        head_size=decoder.head_size,
        window=decoder.sliding_window.window_size if decoder.sliding_window else 0,
        padding=model.pad_token_id,
        context_length=model.context_length,
        threads=decoder.session_options.intra_op_num_threads,
        tokens=decoder.inputs.input_ids,
        logits=decoder.outputs.logits,
        cache_keys=tuple(
            caches.replace("%d", str(block)) for block in range(decoder.num_hidden_layers)
        ),
    )


def _check_search(search: _Search, path: Path, error: type[SirenError]) -> None:
    """Refuse several sequences, and prompts in parts, of which the last alone leaves an output."""
    for name, most in msgspec.structs.asdict(_ONE_SEQUENCE).items():
        found = getattr(search, name)
        if found > most:
            raise error(
                f"{path}: search.{name} is {found}, so that the engine does not give the neurons "
                f"of each token of one sequence; set it to {most}, or leave it out"
            )


def _weights(graph: Path, error: type[SirenError]) -> tuple[str, ...]:
    """The files that a graph takes weights from, all of them in its folder."""
    check_no_pointer(graph, error)
    with ReadFailures(graph, error):
        model = graph.read_bytes()
    try:
        locations = sorted(external_data_locations(model))
    except BundleError as failure:
        raise error(f"{graph}: {failure}") from None
    for location in locations:
        check_relative(location, str(graph))
        if "/" in location or not (graph.parent / location).is_file():
            raise error(f"{graph}: its weights {location!r} are not beside it")
        check_no_pointer(graph.parent / location, error)
    return tuple(locations)
