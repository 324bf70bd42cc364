"""How much quantizing one layer's products moves the scores, for every layer of a backbone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from siren_export.export import calibrate
from siren_export.families.registry import parse_config
from siren_export.graph.builder import GuardGraph
from siren_export.graph_writer import graph_file, write_graphs
from siren_export.guard.score import author_score
from siren_export.heads.base import Artifact
from siren_export.passes.edit import linears
from siren_export.passes.table import lower, row_of
from siren_export.sources.checkpoint import Checkpoint
from siren_export.verify.opened import open_unpublished
from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.bundle.reader import Bundle
from siren_runtime.bundle.types import Precision
from siren_runtime.text.tokenizer import Tokenizer

_UNCERTAIN = 1e-6  # scores are kept so far from 0 and 1, where log-odds end


@dataclass(frozen=True)
class Layer:
    """Products of one input, such as those of queries, keys and values.

    Attributes:
        matrices: the names of their weights.
        elements: of their weights, which their time goes by.
        scores: [texts], where only these are quantized.
        expected: [texts], where no product is.
    """

    matrices: tuple[str, ...]
    elements: int
    scores: np.ndarray
    expected: np.ndarray

    @property
    def effect(self) -> float:
        """The mean square of how far quantizing these moves the log-odds."""
        return float(np.square(_log_odds(self.scores) - _log_odds(self.expected)).mean())


def measure_layers(
    artifact: Artifact,
    checkpoint: Checkpoint,
    bundle: Bundle,
    folder: Path,
    precision: Precision,
    texts: Sequence[str],
    progress: Progress = silent,
) -> list[Layer]:
    """Quantize one layer at a time and score `texts`; the layers come most harmful first.

    What counts is the effect for each weight, since a float32 product costs time by its size.
    One file of weights, float32 and quantized, serves a graph for each layer; one graph is open
    at a time.

    Args:
        bundle: of the same guard in float32.
        folder: an empty folder to write to, as large as both bundles.
    """
    backbone = parse_config(checkpoint.config, checkpoint.source)
    row = row_of("onnxruntime", precision)

    def author() -> GuardGraph:
        return author_score(artifact, backbone, checkpoint.weights, row.compute)

    groups: dict[object, dict[str, int]] = {}
    source = author()
    inputs = calibrate(source, checkpoint, artifact.max_length, (), row, progress)
    for linear in linears(source):
        rows, columns = source.weights[linear.matrix_name].shape
        groups.setdefault(linear.x, {})[linear.matrix_name] = rows * columns
    everything = frozenset(name for group in groups.values() for name in group)
    kept = [everything, *(everything - group.keys() for group in groups.values())]
    graphs = {}
    for number, keep_float in enumerate(kept):
        graphs[f"probe-{number}"] = graph = author()
        lower(graph, row, keep_float, inputs)
    write_graphs(graphs, folder, progress)

    names = iter(graphs)
    expected = _scores(bundle, folder, next(names), texts)
    layers = []
    for done, (name, group) in enumerate(zip(names, groups.values(), strict=True), start=1):
        scores = _scores(bundle, folder, name, texts)
        layers.append(Layer(tuple(group), sum(group.values()), scores, expected))
        progress("probe", done, len(groups))
    return sorted(layers, key=lambda layer: layer.effect / layer.elements, reverse=True)


def _scores(bundle: Bundle, folder: Path, name: str, texts: Sequence[str]) -> np.ndarray:
    """Score with a graph of `folder` in place of the bundle's."""
    score_graph = msgspec.structs.replace(bundle.manifest.graphs["score"], file=graph_file(name))
    probe = Bundle(folder, msgspec.structs.replace(bundle.manifest, graphs={"score": score_graph}))
    tokenizer = Tokenizer(bundle.file(TOKENIZER_FILE), probe.manifest.text.max_length)
    with open_unpublished(probe, tokenizer) as guard:
        return np.array([result.score for result in guard.score_batch(texts)])


def _log_odds(scores: np.ndarray) -> np.ndarray:
    scores = scores.clip(_UNCERTAIN, 1 - _UNCERTAIN)
    odds: np.ndarray = np.log(scores / (1 - scores))
    return odds
