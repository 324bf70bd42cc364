"""What a head gives to the rest, whatever kind it is; and the artifact that holds it.

A kind of head is one file, and one more where its files are read and written. Its class is a
`Head`; `registry` lists what reads one. Nothing else knows of it.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from siren_export.graph.builder import GraphBuilder
from siren_export.graph.taps import Taps
from siren_runtime.bundle.files import replacement, write_durably, write_whole
from siren_runtime.bundle.heads import PRIMARY_HEAD, Decision, HeadSpec
from siren_runtime.errors import InputError
from siren_runtime.generation.manifest import TrainedOn

CONFIG_FILE = "siren_config.json"
WEIGHTS_FILE = "siren.safetensors"
DECISION_FILE = "decision.json"
EXITS_FOLDER = "exits"
# What lies beside a head and is of its weights alone; the reports are those of `siren train`.
_OF_WEIGHTS = (
    DECISION_FILE, EXITS_FOLDER, "training.json", "training.md", "layers.png", "held-out.md",
    "ablation.md", "ablation.png",
)  # fmt: skip

_log = logging.getLogger(__name__)


def write_artifact(folder: Path, weights: bytes, config: Mapping[str, Any]) -> None:
    """Write a head's files. Where others lie beside it that are of other weights, these go first.

    Whenever it is stopped, the folder holds the head that was there, this one, or none: what was
    of one never lies beside the other.

    Raises:
        InputError: a file cannot be written, or not removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS_FILE
    if not path.exists() or path.read_bytes() != weights:
        with replacement(path, InputError) as partial:
            write_durably(partial, weights)
            _remove_of_other_weights(folder)
    write_whole(folder / CONFIG_FILE, (json.dumps(config) + "\n").encode(), InputError)


def _remove_of_other_weights(folder: Path) -> None:
    found = [folder / name for name in _OF_WEIGHTS if (folder / name).exists()]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    if found:
        names = ", ".join(path.name for path in found)
        _log.warning("%s: removed what was of the weights before: %s", folder, names)


class Head(Protocol):
    """A head: what it reads, how that becomes one row of neurons, and the graph over the row."""

    @property
    def spec(self) -> HeadSpec:
        """What the manifest says of it."""

    @property
    def taps(self) -> Taps:
        """What it reads of the backbone."""

    @property
    def parameters(self) -> int:
        """The elements of its matrices."""

    def pool(
        self, g: GraphBuilder, states: Mapping[int, ir.Value], attention_mask: ir.Value
    ) -> ir.Value:
        """Author how the neurons of a whole text become one row.

        Args:
            states: block -> float32 [batch, sequence, hidden].
            attention_mask: int64 [batch, sequence], 1 for real tokens.

        Returns:
            float32 [batch, n_features], not yet weighted by layer.
        """

    def pool_prefixes(
        self,
        g: GraphBuilder,
        states: Mapping[int, ir.Value],
        feature_sum: ir.Value,
        feature_count: ir.Value,
    ) -> tuple[ir.Value, ir.Value]:
        """Author the same of each prefix of a growing text that ends in a chunk of it.

        A head that reads the last token carries nothing: it gives each token's own neurons twice.

        Args:
            states: block -> float32 [batch, chunk, hidden].
            feature_sum: float32 [batch, n_features], what the tokens before the chunk left.
            feature_count: int64 [batch], how many tokens those are.

        Returns:
            What each token leaves for those after it, and the pooled row of each prefix: both
            float32 [batch, chunk, n_features], not yet weighted by layer.
        """

    def features(self, g: GraphBuilder, pooled: ir.Value) -> ir.Value:
        """Author the features [batch, n_features] of pooled neurons of that shape."""

    def classify(self, g: GraphBuilder, pooled: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Author score float32 [batch] and logits float32 [batch, classes] of pooled neurons.

        Pooled neurons are float32 [batch, n_features].

        Products with matrices are Gemm: passes quantize each MatMul by a constant matrix.
        """

    def explain(
        self, g: GraphBuilder, features: ir.Value, direction: ir.Value
    ) -> dict[str, ir.Value]:
        """Author the logits along a direction, and their gradients by the features.

        Args:
            features: float32 [batch, n_features], weighted by layer.
            direction: float32 [batch, classes], the factor of each logit.

        Returns:
            By the names of `siren_runtime.bundle.graphs`, `VALUE` float32 [batch] and `GRADIENTS`
            [batch, n_features]; and what tells of pairs where the spec has a rank.
        """

    @property
    def layer_weights(self) -> NDArray[np.float32]:
        """The factor of each feature's layer, float32 [n_features]."""


@runtime_checkable
class LinearFirst(Protocol):
    """A head that multiplies the pooled row by a matrix before all else.

    The mean of what the matrix makes of each token is what it makes of their mean, so the matrix
    can be applied where the neurons are, and its few results pooled in their place.
    """

    @property
    def projection(self) -> NDArray[np.float32]:
        """The matrix, float32 [n_features, width]."""

    def classify_projected(self, g: GraphBuilder, projected: ir.Value) -> tuple[ir.Value, ir.Value]:
        """As `Head.classify`, of pooled neurons times the matrix, float32 [batch, width]."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """A head as it was published: itself, the backbone it belongs to, and how it is used.

    `max_length` counts special tokens. `source` is what it was asked for by, `path` the folder
    that holds its files. `decision` is how it decides before any calibration in the bundle. `name`
    is the bundle's for the head, and `further` are heads, by name, that are read from the same
    pass (`siren_export.heads.together`). `exits` are heads, by how many blocks they read, that may
    decide in its stead (`siren_export.heads.exits`).
    `trained_on` is there where the head was trained on a generator's own features. `task` is what
    the head scores: texts, or trajectories of agents. `weights_sha256` is of the file that its
    weights were read from; None where there is no such file.
    """

    source: str
    path: Path
    model_id: str
    model_revision: str | None
    max_length: int
    decision: Decision
    head: Head
    name: str = PRIMARY_HEAD
    further: Mapping[str, "Artifact"] = field(default_factory=dict)
    exits: Mapping[int, "Artifact"] = field(default_factory=dict)
    trained_on: TrainedOn | None = None
    task: Literal["content", "trajectory"] = "content"
    weights_sha256: str | None = None

    @property
    def heads(self) -> dict[str, "Artifact"]:
        """All heads of the pass by name, the primary one first; no exits."""
        return {self.name: self, **self.further}

    @property
    def threshold(self) -> float:
        """A text is harmful from this score."""
        return self.decision.threshold
