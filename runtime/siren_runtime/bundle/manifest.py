"""guard.json, the manifest of a bundle: its types, its strict reading, its writing.

Every field that a runtime must respect to score rightly is here. Unknown fields are refused:
a runtime that skipped a field it does not know could score by the wrong rules.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal

import msgspec

from siren_runtime.errors import BundleError

FORMAT_VERSION = 1
MANIFEST_FILE = "guard.json"
TOKENIZER_FILE = "tokenizer.json"
HARMFUL: Final = 1  # the class whose probability is the score
CLEANER: Final = "llm-siren-0.2"

Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4"]
Target = Literal["onnxruntime", "tensorrt", "tensorrt-rtx", "tensorrt10"]
Pooling = Literal["residual_mean", "mlp_mean"]

Positive = Annotated[int, msgspec.Meta(ge=1)]
Size = Annotated[int, msgspec.Meta(ge=0)]
Probability = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Backbone(_Strict, frozen=True):
    """The frozen language model; `blocks_kept` of its `blocks` are in the graph.

    `context_length` is the longest sequence in tokens that the streaming graph can hold.
    """

    id: str
    revision: str | None
    model_type: str
    blocks: Positive
    blocks_kept: Positive
    context_length: Positive | None = None


class Head(_Strict, frozen=True):
    """The SIREN head: which layers it reads, how they are pooled, its width and classes.

    `labels` names the classes by index, or is empty; class 1 is harm.
    """

    kind: Literal["mlp"]
    pooling: Pooling
    layers: list[Size]
    features: Positive
    classes: Annotated[int, msgspec.Meta(ge=2)]
    labels: list[str] = []


class TextRules(_Strict, frozen=True):
    """How text becomes tokens. `max_length` counts special tokens."""

    cleaner: Literal["llm-siren-0.2"]
    joiner: Literal["\n"]
    max_length: Positive
    truncation_side: Literal["right"]


class TensorSpec(_Strict, frozen=True):
    """A graph input or output. A dimension is a size or the name of a free one."""

    name: str
    dtype: str
    shape: list[int | str]


def signature(specs: Iterable[TensorSpec]) -> list[str]:
    """Return what must agree of inputs or outputs, sorted: names, types, ranks, fixed sizes."""
    return sorted(
        f"{spec.name}: {spec.dtype}"
        f"[{', '.join(str(size) if isinstance(size, int) else '?' for size in spec.shape)}]"
        for spec in specs
    )


class GraphSpec(_Strict, frozen=True):
    """One ONNX graph of the bundle."""

    file: str
    opset: Positive
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class FileSpec(_Strict, frozen=True):
    """What a file of the bundle must be: its size in bytes and its SHA-256."""

    size: Size
    sha256: Sha256


class Verification(_Strict, frozen=True):
    """The bundle's scores against a reference's, over the built-in texts.

    `status` is "passed", "drifted" (kept by --allow-drift), or "unverified"; `reason` says why, or
    in what other form than its own the graph was run.
    `bound` is for the difference that `bounded` names, over the texts. What begins with
    `stream` is of the streaming graph, read in chunks, against the whole-sequence graph.
    """

    status: Literal["passed", "drifted", "unverified"]
    reason: str | None = None
    reference: str | None = None
    texts: Size = 0
    bound: float | None = None
    bounded: Literal["max", "mean"] = "max"
    max_difference: float | None = None
    mean_difference: float | None = None
    verdict_agreement: Probability | None = None
    worst_text: str | None = None
    stream_texts: Size = 0
    stream_bound: float | None = None
    stream_max_difference: float | None = None

    @property
    def stream_drifted(self) -> bool:
        """Whether the streaming graph misses its bound."""
        return (
            self.stream_bound is not None
            and self.stream_max_difference is not None
            and not self.stream_max_difference <= self.stream_bound
        )


class Trial(_Strict, frozen=True):
    """One setting that was tried: a precision, and the matrices left in float32.

    `bytes` are those of the bundle's whole-sequence graph and its weights. `milliseconds` is the
    mean over texts of each text's median, one text at a time, and `speed` how many times
    float32's, timed in turns with it. Score differences are to float32's; `changed_verdicts` of
    the texts fall on the other side of the threshold. `outcome` says why it was not kept.
    """

    precision: Precision
    keep_float: list[str]
    bytes: Size
    milliseconds: float
    speed: float
    mean_difference: float
    p99_difference: float
    max_difference: float
    changed_verdicts: Size
    outcome: str
    kept: bool = False

    @property
    def setting(self) -> str:
        """What was tried, in a few words."""
        kept = len(self.keep_float)
        return f"{self.precision}, {kept} matrices float32" if kept else self.precision


class Tuning(_Strict, frozen=True):
    """How the precision was chosen: the fastest of `trials` within `budget` on `texts` texts.

    Within it, the mean |score difference| to float32 and the share of changed verdicts are each
    at most `budget`.
    """

    budget: Probability
    texts: Positive
    trials: list[Trial]


class Tier(_Strict, frozen=True):
    """A named band of scores: from `threshold` up to the next tier's."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    threshold: Probability


class Manifest(_Strict, frozen=True):
    """guard.json. `files` maps each file of the bundle, but for guard.json, to what it must be.

    `tiers` and `temperature` are set by calibration. Tiers fall in threshold; logits are divided
    by the temperature before the softmax. `tuning` is there where the precision was measured.
    `saturation_free` says that no integer product of the graphs can saturate on any CPU; bundles
    that do not say so are run with wider ones.
    """

    format_version: int
    task: Literal["content"]
    backbone: Backbone
    head: Head
    text: TextRules
    threshold: Probability
    precision: Precision
    target: Target
    graphs: dict[str, GraphSpec]
    files: dict[str, FileSpec]
    verification: Verification
    versions: dict[str, str]
    created: str
    tiers: list[Tier] = []
    temperature: Annotated[float, msgspec.Meta(ge=0.01, le=100.0)] = 1.0
    tuning: Tuning | None = None
    saturation_free: bool = False


class _Versioned(msgspec.Struct):
    format_version: int


def decode(data: bytes, origin: str) -> Manifest:
    """Read guard.json's bytes; `origin` names them in errors.

    Raises:
        BundleError: not JSON, another format version, a field missing, unknown or of a wrong
            type or range, or a path that is not a plain relative one.
    """
    try:
        version = msgspec.json.decode(data, type=_Versioned).format_version
        if version != FORMAT_VERSION:
            hint = "update siren-edge" if version > FORMAT_VERSION else "export the bundle again"
            raise BundleError(
                f"{origin}: format version {version}, this runtime reads {FORMAT_VERSION}; {hint}"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{origin}: not a valid manifest: {error}") from None
    for path in (*manifest.files, *(graph.file for graph in manifest.graphs.values())):
        check_relative(path, origin)
    _check_consistent(manifest, origin)
    return manifest


def encode(manifest: Manifest) -> bytes:
    """Write guard.json: indented, keys in the order of the types: equal content, equal bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def check_relative(path: str, origin: str) -> None:
    """Refuse a path that could leave the bundle's folder.

    Raises:
        BundleError: `path` is absolute, empty, has a `..` part, a drive, a backslash or a NUL.
    """
    parts = PurePosixPath(path).parts
    if (
        not parts
        or path.startswith("/")
        or ".." in parts
        or any(c in path for c in "\\:\0")
        or str(PurePosixPath(path)) != path
    ):
        raise BundleError(
            f"{origin}: the path {path!r} is not a plain relative path inside the bundle"
        )


def _check_consistent(manifest: Manifest, origin: str) -> None:
    if "score" not in manifest.graphs:
        raise BundleError(f"{origin}: graphs has no 'score'; found {sorted(manifest.graphs)}")
    for name, graph in manifest.graphs.items():
        if not graph.file.endswith(".onnx"):  # ONNX Runtime goes by the suffix; we read ONNX only
            raise BundleError(f"{origin}: graph {name!r} is {graph.file!r}, expected an .onnx file")
        if graph.file not in manifest.files:
            raise BundleError(f"{origin}: graph {name!r} names {graph.file!r}, which files lacks")
    _check_score_graph(manifest, origin)
    _check_stream_graphs(manifest, origin)
    if TOKENIZER_FILE not in manifest.files:
        raise BundleError(f"{origin}: files lacks {TOKENIZER_FILE!r}")
    backbone, layers = manifest.backbone, manifest.head.layers
    if backbone.blocks_kept > backbone.blocks:
        raise BundleError(
            f"{origin}: blocks_kept {backbone.blocks_kept} exceeds blocks {backbone.blocks}"
        )
    if not layers or sorted(set(layers)) != layers or layers[-1] != backbone.blocks_kept - 1:
        raise BundleError(
            f"{origin}: head.layers must ascend and end at the deepest block kept "
            f"({backbone.blocks_kept - 1}), found {layers}"
        )
    labels = manifest.head.labels
    if labels and (len(labels), len(set(labels))) != (manifest.head.classes,) * 2:
        raise BundleError(
            f"{origin}: head.labels is {labels}; expected {manifest.head.classes} different names"
        )
    check_tiers(manifest.tiers, origin)


def check_tiers(tiers: list[Tier], origin: str) -> None:
    """Refuse tiers that do not name each score's band uniquely.

    Raises:
        BundleError: two tiers share a name, or the thresholds do not fall.
    """
    names = [tier.name for tier in tiers]
    if len(set(names)) < len(names):
        raise BundleError(f"{origin}: each tier needs a name of its own, found {names}")
    thresholds = [tier.threshold for tier in tiers]
    if sorted(set(thresholds), reverse=True) != thresholds:
        raise BundleError(
            f"{origin}: the tiers' thresholds must fall from the first to the last, found "
            f"{thresholds}"
        )


def _check_score_graph(manifest: Manifest, origin: str) -> None:
    tokens: list[int | str] = ["batch", "sequence"]
    inputs = [TensorSpec(name, "int64", tokens) for name in ("input_ids", "attention_mask")]
    _check_graph(manifest, "score", inputs, _head_outputs(manifest), origin)


def _head_outputs(manifest: Manifest) -> list[TensorSpec]:
    return [
        TensorSpec("score", "float32", ["batch"]),
        TensorSpec("logits", "float32", ["batch", manifest.head.classes]),
        TensorSpec("features", "float32", ["batch", manifest.head.features]),
    ]


def _check_stream_graphs(manifest: Manifest, origin: str) -> None:
    """The streaming graph of a decoder comes with a graph of the head alone."""
    if "stream" not in manifest.graphs:
        return
    if "head" not in manifest.graphs or manifest.backbone.context_length is None:
        raise BundleError(
            f"{origin}: a 'stream' graph needs a 'head' graph and backbone.context_length"
        )
    features = manifest.head.features
    past = next((s for s in manifest.graphs["stream"].inputs if s.name == "past.0.key"), None)
    if past is None or past.dtype not in ("float32", "float16") or len(past.shape) != 4:
        raise BundleError(f"{origin}: graphs.stream lacks a usable input 'past.0.key'")
    blocks = range(manifest.backbone.blocks_kept)
    names = [f"{block}.{part}" for block in blocks for part in ("key", "value")]
    inputs = [
        TensorSpec("input_ids", "int64", ["batch", "chunk"]),
        TensorSpec("past_lengths", "int64", ["batch"]),
        TensorSpec("feature_sum", "float32", ["batch", features]),
        TensorSpec("feature_count", "int64", ["batch"]),
        *(TensorSpec(f"past.{name}", past.dtype, past.shape) for name in names),
    ]
    outputs = [
        TensorSpec("score", "float32", ["batch", "chunk"]),
        TensorSpec("logits", "float32", ["batch", "chunk", manifest.head.classes]),
        TensorSpec("feature_sums", "float32", ["batch", "chunk", features]),
        *(TensorSpec(f"present.{name}", past.dtype, past.shape) for name in names),
    ]
    _check_graph(manifest, "stream", inputs, outputs, origin)
    pooled = [TensorSpec("pooled", "float32", ["batch", features])]
    _check_graph(manifest, "head", pooled, _head_outputs(manifest), origin)


def _check_graph(
    manifest: Manifest,
    name: str,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    origin: str,
) -> None:
    graph = manifest.graphs[name]
    for kind, found, expected in (
        ("inputs", graph.inputs, inputs),
        ("outputs", graph.outputs, outputs),
    ):
        if signature(found) != signature(expected):
            raise BundleError(
                f"{origin}: graphs.{name}.{kind} are {signature(found)}, "
                f"expected {signature(expected)}"
            )
