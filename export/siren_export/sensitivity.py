"""How much quantizing one layer's products moves the scores, for every layer of a backbone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from siren_runtime import Guard
from siren_runtime.backends import open_backend
from siren_runtime.bundle import Bundle
from siren_runtime.manifest import Manifest, Precision
from siren_runtime.tokenizer import Tokenizer

from .artifact import Artifact
from .checkpoint import Checkpoint
from .config import parse_config
from .export import Progress, graph_file, write_graphs
from .graph.builder import GuardGraph
from .graph.guard import author_guard
from .passes.edit import linears
from .passes.targets import lower

_UNCERTAIN = 1e-6  # scores are kept so far from 0 and 1, where log-odds end


@dataclass(frozen=True)
class Layer:
    """Products of one input, such as those of queries, keys and values.

    Attributes:
        matrices: the names of their weights.
        elements: of their weights, which their time goes by.
        effect: mean square of how far the log-odds move when only these are quantized.
    """

    matrices: frozenset[str]
    elements: int
    effect: float


def measure_layers(
    artifact: Artifact,
    checkpoint: Checkpoint,
    manifest: Manifest,
    tokenizer_file: Path,
    folder: Path,
    precision: Precision,
    texts: Sequence[str],
    progress: Progress,
    probed: Callable[[int, int], None],
) -> list[Layer]:
    """Quantize one layer at a time and score `texts`; the layers come most harmful first.

    What counts is the effect for each weight, since a float32 product costs time by its size.
    One file of weights, float32 and quantized, serves a graph for each layer; one graph is open
    at a time.

    Args:
        manifest: of the float32 bundle of the same guard.
        folder: an empty folder to write to, as large as both bundles.
        probed: called with layers done and in all.
    """
    config = parse_config(checkpoint.config, checkpoint.source)

    def author() -> GuardGraph:
        return author_guard(artifact, checkpoint, config, precision)

    groups: dict[object, dict[str, int]] = {}
    source = author()
    for linear in linears(source):
        rows, columns = source.weights[linear.matrix_name].shape
        groups.setdefault(linear.x, {})[linear.matrix_name] = rows * columns
    everything = frozenset(name for group in groups.values() for name in group)
    kept = [everything, *(everything - group.keys() for group in groups.values())]
    graphs = {}
    for number, keep_float in enumerate(kept):
        graphs[f"probe-{number}"] = graph = author()
        lower(graph, precision, "onnxruntime", keep_float=keep_float)
    write_graphs(graphs, folder, progress)

    tokenizer = Tokenizer(tokenizer_file, manifest.text.max_length)

    def log_odds(name: str) -> np.ndarray:
        score_graph = msgspec.structs.replace(manifest.graphs["score"], file=graph_file(name))
        probe = msgspec.structs.replace(manifest, graphs={"score": score_graph})
        bundle = Bundle(folder, probe)
        with Guard(bundle, tokenizer, open_backend(bundle, "cpu")) as guard:
            found = np.array([result.score for result in guard.score_batch(texts)])
        found = found.clip(_UNCERTAIN, 1 - _UNCERTAIN)
        odds: np.ndarray = np.log(found / (1 - found))
        return odds

    names = iter(graphs)
    expected = log_odds(next(names))
    layers = []
    for done, (name, group) in enumerate(zip(names, groups.values(), strict=True), start=1):
        effect = float(np.square(log_odds(name) - expected).mean())
        layers.append(Layer(frozenset(group), sum(group.values()), effect))
        probed(done, len(groups))
    return sorted(layers, key=lambda layer: layer.effect / layer.elements, reverse=True)
