"""guard.json, the manifest of a bundle: its type, its strict reading, its writing.

Every field that a runtime must respect to score rightly is here. Unknown fields are refused:
a runtime that skipped a field it does not know could score by the wrong rules.
"""

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

import msgspec

from siren_runtime.errors import BundleError

from .backbone import Backbone
from .cascade import Cascade, check_cascade, check_segments, check_stream_segments
from .graphs import (
    SPANS,
    CacheSpec,
    GraphSpec,
    cache_of,
    check_contract,
    explain_graph,
    explain_name,
    head_graph,
    score_graph,
    spans_graph,
    stream_graph,
)
from .heads import (
    HEAD_NAME,
    PRIMARY_HEAD,
    Decision,
    HeadSpec,
    LabelDecision,
    Smoothing,
    Temperature,
    check_decision,
    check_pass,
)
from .orders import OrderCascade, check_orders
from .report import Quantization, Tuning, Verification
from .thresholds import ResponseThresholds, SpanThreshold, Tier
from .trajectory import TrajectoryRules, check_trajectory
from .types import Positive, Precision, Probability, Sha256, Size, Strict, Target

FORMAT_VERSION = 2
MANIFEST_FILE = "guard.json"
TOKENIZER_FILE = "tokenizer.json"
NOTICE_FILE = "NOTICE"  # what licences of heads and backbone ask to be passed on
CLEANER: Final = "llm-siren-0.2"
HeadName = Annotated[str, msgspec.Meta(pattern=HEAD_NAME)]


class TextRules(Strict, frozen=True):
    """How text becomes tokens. `max_length` counts special tokens.

    The text of a trajectory is not cleaned, and a long one loses its middle.
    """

    cleaner: Literal["llm-siren-0.2", "none"]
    joiner: Literal["\n"]
    max_length: Positive
    truncation_side: Literal["right", "head_tail"]


class FileSpec(Strict, frozen=True):
    """What a file of the bundle must be: its size in bytes and its SHA-256."""

    size: Size
    sha256: Sha256


class Manifest(Strict, frozen=True):
    """guard.json. `heads` are by name, the primary one first.

    `files` maps each file of the bundle, but for guard.json, to what it must be.

    `threshold`, `tiers`, `spans`, `temperature`, `labels`, `smoothing` and `responses` are how the
    primary head decides, as in `Decision`; `decisions` are the further heads' by name. `neurons` is
    how many neurons the graphs pool for all heads together; None is as many as the one head reads.

    `trajectory` says how trajectories become text, in a bundle that scores those and no texts.

    `cascade` are the exits, where there are any, and `orders` from which scores a lower order of
    the primary head would be enough, where that was calibrated.
    `tuning` is there where the precision was measured, `quantization` where it was fitted to texts.
    `saturation_free` says that no integer product of the graphs can saturate on any CPU; bundles
    that do not say so are run with wider ones. `weights_sha256` are, by name, of the files that the
    heads' weights were exported from; bundles of before do not say.
    """

    format_version: int
    task: Literal["content", "trajectory"]
    backbone: Backbone
    heads: Annotated[dict[HeadName, HeadSpec], msgspec.Meta(min_length=1)]
    text: TextRules
    threshold: Probability
    precision: Precision
    target: Target
    graphs: dict[str, GraphSpec]
    files: dict[str, FileSpec]
    verification: Verification
    versions: dict[str, str]
    created: str
    tiers: list[Tier] = msgspec.field(default_factory=list)
    spans: list[SpanThreshold] = msgspec.field(default_factory=list)
    temperature: Temperature = 1.0
    labels: list[LabelDecision] = msgspec.field(default_factory=list)
    smoothing: Smoothing = 1
    responses: ResponseThresholds | None = None
    neurons: Positive | None = None
    decisions: dict[str, Decision] = msgspec.field(default_factory=dict)
    trajectory: TrajectoryRules | None = None
    cascade: Cascade | None = None
    orders: OrderCascade | None = None
    tuning: Tuning | None = None
    quantization: Quantization | None = None
    saturation_free: bool = False
    carried_over: Size = 0
    weights_sha256: dict[HeadName, Sha256] = msgspec.field(default_factory=dict)

    @property
    def streams(self) -> bool:
        """Whether there is a streaming graph."""
        return "stream" in self.graphs

    @property
    def is_trajectory(self) -> bool:
        """Whether it scores trajectories of agents, and no texts."""
        return self.task == "trajectory"

    @property
    def head(self) -> HeadSpec:
        """The primary head, whose score is the guard's."""
        return next(iter(self.heads.values()))

    @property
    def primary(self) -> str:
        """The name of the primary head."""
        return next(iter(self.heads))

    @property
    def pooled(self) -> int:
        """How many neurons the graphs pool, for all heads together."""
        return self.head.features if self.neurons is None else self.neurons

    def decision(self, name: str) -> Decision:
        """How the head of that name decides.

        Raises:
            BundleError: there is no such head.
        """
        if name not in self.heads:
            raise BundleError(
                f"the bundle of {self.backbone.id} has no head {name!r}; it has "
                f"{', '.join(self.heads)}"
            )
        if name != self.primary:
            return self.decisions[name]
        return Decision(
            self.threshold,
            self.tiers,
            self.spans,
            self.temperature,
            self.labels,
            self.smoothing,
            self.responses,
        )

    def deciding(self, name: str, decision: Decision) -> "Manifest":
        """The manifest with another decision of the head of that name.

        Raises:
            BundleError: there is no such head.
        """
        self.decision(name)
        if name == self.primary:
            return msgspec.structs.replace(self, **msgspec.structs.asdict(decision))
        decisions = {**self.decisions, name: decision}
        return msgspec.structs.replace(self, decisions=decisions)

    @property
    def cutoffs(self) -> list[float]:
        """The thresholds of the primary head and its tiers, those of responses too, ascending."""
        found = {self.threshold, *(tier.threshold for tier in self.tiers)}
        if self.responses is not None:
            found |= {self.responses.threshold, *(t.threshold for t in self.responses.tiers)}
        return sorted(found)

    @property
    def stream_cache(self) -> CacheSpec:
        """The key/value cache of the streaming graph.

        Raises:
            BundleError: there is no such graph.
        """
        cache = cache_of(self.graphs["stream"]) if self.streams else None
        if cache is None:
            raise BundleError(f"the bundle of {self.backbone.id} has no streaming graph")
        return cache


class _Versioned(msgspec.Struct):
    format_version: int
    task: str = "content"


def decode(data: bytes, origin: str) -> Manifest:
    """Read guard.json's bytes; `origin` names them in errors. Format 1 is read as well.

    Raises:
        BundleError: not JSON, another format version, a field missing, unknown or of a wrong
            type or range, or a path that is not a plain relative one.
    """
    try:
        kind = msgspec.json.decode(data, type=_Versioned)
        if kind.task == "generation":
            raise BundleError(
                f"{origin}: a grafted generator, not a guard that scores text; open it with "
                "GuardedGenerator.load or siren generate"
            )
        version = kind.format_version
        if version not in (1, FORMAT_VERSION):
            hint = "update siren-edge" if version > FORMAT_VERSION else "export the bundle again"
            raise BundleError(
                f"{origin}: format version {version}, this runtime reads 1 and {FORMAT_VERSION}; "
                f"{hint}"
            )
        if version == 1:
            manifest = msgspec.convert(_upgraded(msgspec.json.decode(data)), Manifest)
        else:
            manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{origin}: not a valid manifest: {error}") from None
    for path in (*manifest.files, *(graph.file for graph in manifest.graphs.values())):
        check_relative(path, origin)
    _check_consistent(manifest, origin)
    return manifest


def _upgraded(fields: dict[str, Any]) -> dict[str, Any]:
    """Format 1 as format 2: it had one head without a name, and called candidates trials."""
    if "heads" in fields:
        raise msgspec.ValidationError("Object contains unknown field `heads` - at `$`")
    fields["format_version"] = FORMAT_VERSION
    if "head" in fields:
        fields["heads"] = {PRIMARY_HEAD: fields.pop("head")}
    tuning = fields.get("tuning")
    if isinstance(tuning, dict) and "trials" in tuning:
        tuning["candidates"] = tuning.pop("trials")
    return fields


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
    check_contract(manifest.graphs, "score", score_graph(manifest.heads), origin)
    if SPANS in manifest.graphs:
        if not manifest.head.pools_mean:
            raise BundleError(f"{origin}: graphs.spans gives means, and the head reads no mean")
        check_contract(manifest.graphs, SPANS, spans_graph(manifest.heads), origin)
    _check_stream_graphs(manifest, origin)
    _check_explain_graphs(manifest, origin)
    if TOKENIZER_FILE not in manifest.files:
        raise BundleError(f"{origin}: files lacks {TOKENIZER_FILE!r}")
    backbone = manifest.backbone
    if backbone.blocks_kept > backbone.blocks:
        raise BundleError(
            f"{origin}: blocks_kept {backbone.blocks_kept} exceeds blocks {backbone.blocks}"
        )
    _check_heads(manifest, origin)
    cut = manifest.text.cleaner, manifest.text.truncation_side
    check_trajectory(manifest.task, manifest.trajectory, cut, manifest.heads, origin)
    rules = manifest.trajectory
    if rules is not None and rules.template not in manifest.files:
        raise BundleError(f"{origin}: files lacks {rules.template!r}")
    others = manifest.spans, manifest.cascade, manifest.responses
    if rules is not None and any(others):
        raise BundleError(
            f"{origin}: a bundle of trajectories has no spans, exits and thresholds of responses"
        )
    if manifest.orders is not None:
        check_orders(manifest.orders, manifest.head, manifest.cutoffs, origin)
    if manifest.cascade is not None:
        kept = backbone.blocks_kept
        check_cascade(manifest.cascade, manifest.heads, kept, manifest.cutoffs, origin)
        check_segments(manifest.cascade, manifest.heads, manifest.graphs, origin)
        if manifest.streams:
            cache = manifest.stream_cache
            check_stream_segments(manifest.cascade, manifest.heads, cache, manifest.graphs, origin)


def _check_heads(manifest: Manifest, origin: str) -> None:
    """Each head by itself; then that they read one pass, and that each further one decides."""
    kept = manifest.backbone.blocks_kept
    check_pass(manifest.heads, kept, "neurons", manifest.pooled, origin)
    deepest = max(head.layers[-1] for head in manifest.heads.values())
    if deepest != kept - 1:
        raise BundleError(
            f"{origin}: the heads read block {deepest} at the deepest; blocks_kept is {kept}, so "
            f"one must read block {kept - 1}"
        )
    further = [*manifest.heads][1:]
    if set(manifest.decisions) != set(further):
        raise BundleError(
            f"{origin}: decisions are those of {sorted(manifest.decisions)}; expected one of each "
            f"further head: {sorted(further)}"
        )
    if manifest.weights_sha256 and {*manifest.weights_sha256} != {*manifest.heads}:
        raise BundleError(
            f"{origin}: weights_sha256 are those of {sorted(manifest.weights_sha256)}, heads "
            f"{sorted(manifest.heads)}"
        )
    for name, head in manifest.heads.items():
        check_decision(name, head, manifest.decision(name), origin)


def _check_stream_graphs(manifest: Manifest, origin: str) -> None:
    """The streaming graph of a decoder comes with a graph of the head alone."""
    if not manifest.streams:
        return
    if "head" not in manifest.graphs or manifest.backbone.context_length is None:
        raise BundleError(
            f"{origin}: a 'stream' graph needs a 'head' graph and backbone.context_length"
        )
    cache = cache_of(manifest.graphs["stream"])
    if cache is None:
        raise BundleError(f"{origin}: graphs.stream lacks a usable input 'past.0.key'")
    cache = replace(cache, blocks=manifest.backbone.blocks_kept)
    graphs, pooled = manifest.graphs, manifest.pooled
    check_contract(graphs, "stream", stream_graph(manifest.head, pooled, cache), origin)
    check_contract(graphs, "head", head_graph(manifest.heads, pooled), origin)


def _check_explain_graphs(manifest: Manifest, origin: str) -> None:
    for name, head in manifest.heads.items():
        if explain_name(name) in manifest.graphs:
            check_contract(manifest.graphs, explain_name(name), explain_graph(head), origin)
