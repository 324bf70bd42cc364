"""What guard.json says of a bundle."""

from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import msgspec

from siren_runtime.bundle.backbone import Backbone, ModelName
from siren_runtime.bundle.cascade import Cascade, Exit
from siren_runtime.bundle.manifest import (
    CLEANER,
    FORMAT_VERSION,
    FileSpec,
    Manifest,
    TextRules,
)
from siren_runtime.bundle.report import Quantization, Tuning, Verification
from siren_runtime.bundle.trajectory import TEMPLATE_FILE, TrajectoryRules
from siren_runtime.bundle.types import Precision, Target
from siren_runtime.text.rules import JOINER

from .families.base import StateSource
from .graph.builder import GuardGraph
from .graph_writer import graph_spec
from .heads.base import Artifact
from .heads.together import head_set
from .passes.table import Row
from .sources.chat_template import ChatFormat
from .sources.checkpoint import Checkpoint

_MADE_BY = ("siren-edge", "onnx", "onnx-ir", "numpy", "ml_dtypes")


def describe(
    artifact: Artifact,
    row: Row,
    precision: Precision,
    target: Target,
    *,
    backbone: Backbone,
    chat: ChatFormat | None,
    graphs: Mapping[str, GuardGraph],
    files: dict[str, FileSpec],
    tuning: Tuning | None,
    quantization: Quantization | None,
) -> Manifest:
    """What is said of a bundle before it is verified.

    Args:
        graphs: by name, lowered.
        files: those beside guard.json, by name.
    """
    heads = head_set(artifact)
    trajectory = None
    if chat is not None:
        trajectory = TrajectoryRules(TEMPLATE_FILE, dict(chat.tokens), "rich")
    exits = [Exit(depth, one.head.spec) for depth, one in artifact.exits.items()]
    return Manifest(
        format_version=FORMAT_VERSION,
        task=artifact.task,
        backbone=backbone,
        heads=heads.specs,
        text=TextRules(
            cleaner=CLEANER if chat is None else "none",
            joiner=JOINER,
            max_length=artifact.max_length,
            truncation_side="right" if chat is None else "head_tail",
        ),
        **msgspec.structs.asdict(artifact.decision),
        neurons=None if heads.neurons == artifact.head.spec.features else heads.neurons,
        trajectory=trajectory,
        decisions={name: other.decision for name, other in artifact.further.items()},
        cascade=Cascade(exits) if exits else None,
        precision=precision,
        target=target,
        graphs={name: graph_spec(name, graph) for name, graph in graphs.items()},
        files=files,
        verification=Verification(status="unverified", reason="not asked for"),
        tuning=tuning,
        quantization=quantization,
        saturation_free=row.saturation_free,
        carried_over=len(graphs["score"].carried_over),
        weights_sha256={
            name: one.weights_sha256 for name, one in artifact.heads.items() if one.weights_sha256
        },
        versions={p: metadata.version(p) for p in _MADE_BY},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def backbone_entry(
    artifact: Artifact,
    checkpoint: Checkpoint,
    backbone: StateSource,
    context: int | None,
    *,
    as_named: bool,
) -> Backbone:
    """What is said of the backbone.

    Args:
        context: tokens that a stream may hold; None where there are no streams.
        as_named: the checkpoint is known to be what the head names, wherever it lies.
    """
    read, named = names(artifact, checkpoint.source, checkpoint.revision)
    if as_named:
        read, named = named or read, None
    return Backbone(
        id=read.id,
        revision=read.revision,
        model_type=backbone.model_type,
        blocks=backbone.blocks,
        blocks_kept=head_set(artifact).taps.deepest + 1,
        context_length=context,
        vocab_size=backbone.vocab_size,
        digest=checkpoint.digest(),
        named=named,
    )


def names(
    artifact: Artifact, source: str, revision: str | None
) -> tuple[ModelName, ModelName | None]:
    """What the backbone that was read from `source` is called, whoever reads that wherever; and
    what the head names, where that is another.

    Args:
        revision: the commit of a hub repository; None of what is local, whose path is left out.
    """
    if revision is not None:
        read = ModelName(source.removeprefix("hf://"), revision)
    else:
        local = Path(source).expanduser()
        read = ModelName(local.name if local.name not in ("", "..") else local.resolve().name, None)
    named = ModelName(artifact.model_id, artifact.model_revision)
    same = named.id in (read.id, source) and named.revision in (None, read.revision)
    return read, None if same else named
