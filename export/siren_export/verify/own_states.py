"""The reference of a backbone that is an ONNX file, where its own weights are not at hand.

The whole file is run as it is, with nothing cut, and gives the states that the heads read. They are
picked and averaged here, by numpy, text by text; the heads are the graph of heads alone. So what is
compared is what the export did to the graph. That the states are the model's is for llm-siren to
say, which needs the weights that the file was made of.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from siren_export.bundle_writer import write_file
from siren_export.guard.score import author_head_alone
from siren_export.heads.base import Artifact
from siren_export.heads.together import head_set
from siren_export.sources.checkpoint import Checkpoint
from siren_export.sources.onnx_blocks import TransformerGraph
from siren_export.sources.onnx_file import OnnxFile
from siren_runtime.backends.onnxruntime.failures import EngineFailures
from siren_runtime.backends.onnxruntime.providers import import_onnxruntime
from siren_runtime.bundle.graphs import LOGITS, POOLED, SCORE, output_name
from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.bundle.progress import Progress
from siren_runtime.text.rules import clean
from siren_runtime.text.tokenizer import Tokenizer

from .reference import Reference, head_hash
from .texts import TEXTS, added_tokens, digest, own_texts
from .tokens import why_not_compared
from .unavailable import ReferenceUnavailable

_FOLDER = "session.model_external_initializers_file_folder_path"
State = Literal["residual", "mlp"]
_STATE = "siren.state.{}"
_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


@dataclass(frozen=True)
class OwnStates:
    """The file's own hidden states, run in ONNX Runtime on this machine."""

    artifact: Artifact
    checkpoint: Checkpoint

    def scores(self, progress: Progress) -> Reference:
        """Score the built-in texts and the checkpoint's own, one by one.

        Raises:
            ReferenceUnavailable: the head is of trajectories.
            CheckpointError: the graph is built otherwise than what is known here.
            BackendError: ONNX Runtime cannot run the file.
        """
        file = self.checkpoint.onnx
        assert file is not None
        if self.artifact.task != "content":
            raise ReferenceUnavailable("trajectories are compared with llm-siren's scores only")
        with EngineFailures(
            lambda error: (
                f"{file.path}: ONNX Runtime cannot run the file itself, whose states are "
                f"the reference: {error}; compare with weights instead: --reference-backbone"
            )
        ):
            return self._scores(file, progress)

    def _scores(self, file: OnnxFile, progress: Progress) -> Reference:
        heads = head_set(self.artifact)
        session = _open_whole(file, heads.taps.state, [*heads.taps.channels])
        tokens = added_tokens(self.checkpoint)
        own = own_texts(tokens, self.artifact.max_length)
        with tempfile.TemporaryDirectory() as scratch:
            write_file(Path(scratch) / TOKENIZER_FILE, self.checkpoint.tokenizer_json)
            tokenizer = Tokenizer(Path(scratch) / TOKENIZER_FILE, self.artifact.max_length)
        head = _open_head(self.artifact)
        mean = self.artifact.head.spec.pools_mean
        rows: dict[str, list[list[float]]] = {name: [] for name in heads.heads}
        named = self.artifact.heads
        outputs = [output_name(heads.specs, name, o) for name in rows for o in (SCORE, LOGITS)]
        texts = [*TEXTS, *own]
        for done, text in enumerate(texts, start=1):
            (ids,) = tokenizer.encode_batch([clean(text)])
            states = session.run(None, _inputs(session, file, ids))
            pooled = [
                (state[0].mean(axis=0, dtype=np.float64) if mean else state[0, -1])[channels]
                for state, channels in zip(states, heads.taps.channels.values(), strict=True)
            ]
            row = np.concatenate(pooled).astype(np.float32)[None]
            found = iter(head.run(outputs, {POOLED: row}))
            for name, (score, logits) in zip(rows, zip(found, found, strict=True), strict=True):
                rows[name].append(_row(named[name], score[0], logits[0]))
            progress("reference", done, len(texts))
        scores = [score for score, *_ in rows[self.artifact.name]]
        name = f"the file's own states (ONNX Runtime {metadata.version('onnxruntime')})"
        if (why := why_not_compared(self.checkpoint)) is not None:
            name += f", whose tokens were compared with none: {why}"
        return Reference(
            name=name,
            head=head_hash(self.artifact),
            texts=digest(),
            scores=scores[: len(TEXTS)],
            own_texts=own,
            own_scores=scores[len(TEXTS) :],
            rows=rows,
        )


def _open_whole(file: OnnxFile, state: State, blocks: list[int]) -> Any:
    """The file, which gives the states of some blocks in place of its own outputs."""
    model = file.load()
    found = TransformerGraph(model.graph, str(file.path), file.tokens, file.result)
    known = found.blocks(file.blocks, file.caches)
    states = {number: known[number].state(state) for number in blocks}
    model.graph.outputs.clear()
    for number, value in states.items():
        node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
        node.outputs[0].name = _STATE.format(number)
        node.outputs[0].dtype = ir.DataType.FLOAT
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(_FOLDER, str(file.path.parent.resolve()))
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _open_head(artifact: Artifact) -> Any:
    data = ir.to_proto(author_head_alone(artifact).whole()).SerializeToString()
    return import_onnxruntime().InferenceSession(data, providers=["CPUExecutionProvider"])


def _row(artifact: Artifact, score: np.float32, logits: np.ndarray) -> list[float]:
    """The score of a head, and behind it the probabilities of labels, as `rows.row` has them.

    Args:
        score, logits: of one text, float32 and [classes], as the graph gives them.
    """
    if not artifact.head.spec.has_labels:
        return [float(score)]
    temperatures = [label.temperature for label in artifact.decision.labels] or [1.0]
    probabilities = (1 / (1 + np.exp(-logits / temperatures))).tolist()
    return [max(probabilities), *probabilities]


def _inputs(session: Any, file: OnnxFile, ids: list[int]) -> Mapping[str, np.ndarray]:
    """What the whole file reads of a text that stands alone."""
    row = np.array([ids], np.int64)
    known = {
        file.tokens: row,
        file.mask: np.ones_like(row),
        "position_ids": np.arange(len(ids))[None],
        "token_type_ids": np.zeros_like(row),
    }
    fed: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        dtype = _DTYPES[value.type]
        if value.name in known:
            fed[value.name] = known[value.name].astype(dtype)
        elif (sizes := file.sizes_of_cache(value.shape)) is not None:
            fed[value.name] = np.zeros((1, sizes[0], 0, sizes[1]), dtype)
    return fed
