"""ensemble.json: bundles of the same classes whose scores are averaged.

{"format_version": 1, "members": ["small", "large"], "threshold": 0.5, "tiers": [],
 "spans": [{"tokens": 32, "threshold": 0.9}],
 "responses": {"threshold": 0.4, "tiers": [], "spans": []}}
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from siren_runtime.errors import BundleError, InputError

from .files import ReadFailures, write_whole
from .heads import Decision, LabelDecision
from .manifest import MANIFEST_FILE, Manifest, check_relative
from .reader import read_manifest
from .thresholds import (
    ResponseThresholds,
    SpanThreshold,
    Tier,
    check_response_spans,
    check_response_tiers,
    check_spans,
    check_tiers,
)
from .types import Probability, Strict

FORMAT_VERSION = 1
ENSEMBLE_FILE = "ensemble.json"


class EnsembleManifest(Strict, frozen=True):
    """ensemble.json. `members` are folders of bundles inside the ensemble's own.

    `threshold` None is the mean of the members'; another holds for responses too, unless they have
    `responses`. These, `tiers` and `spans` are as in a bundle's manifest. Without `spans` there are
    those that every member has thresholds for, and these are the mean of theirs.
    """

    format_version: int
    members: Annotated[list[str], msgspec.Meta(min_length=2)]
    threshold: Probability | None = None
    tiers: list[Tier] = msgspec.field(default_factory=list)
    spans: list[SpanThreshold] = msgspec.field(default_factory=list)
    responses: ResponseThresholds | None = None


def is_ensemble(folder: Path) -> bool:
    """Whether a folder holds ensemble.json, readable or not.

    Raises:
        BundleError: the folder may not be entered.
    """
    with ReadFailures(folder):
        try:
            (folder / ENSEMBLE_FILE).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def read_ensemble(folder: Path) -> EnsembleManifest:
    """Read the ensemble.json of a folder.

    Raises:
        BundleError: it is missing, damaged or of another format version, names a folder outside
            its own, behind a symbolic link or twice, or its tiers and thresholds of responses are
            not those of a manifest.
    """
    root = Path(os.path.realpath(folder))
    return _decoded(read_manifest(root, ENSEMBLE_FILE), root)


def write_ensemble(folder: Path, manifest: EnsembleManifest) -> None:
    """Write the ensemble.json of a folder, whole or not at all.

    Raises:
        BundleError: it contradicts itself; the old one stays.
        InputError: it cannot be written.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
    _decoded(data, Path(os.path.realpath(folder)))
    write_whole(folder / ENSEMBLE_FILE, data, InputError)


def _decoded(data: bytes, root: Path) -> EnsembleManifest:
    path = root / ENSEMBLE_FILE
    try:
        manifest = msgspec.json.decode(data, type=EnsembleManifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not a valid ensemble: {error}") from None
    if manifest.format_version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {manifest.format_version}, this runtime reads {FORMAT_VERSION}"
        )
    for member in manifest.members:
        check_relative(member, str(path))
        if os.path.realpath(root / member) != str(root / member):
            raise BundleError(f"{path}: member {member!r} is behind a symbolic link")
    if len(set(manifest.members)) < len(manifest.members):
        raise BundleError(f"{path}: each member counts once, found {manifest.members}")
    _check_decision(manifest, str(path))
    return manifest


def _check_decision(manifest: EnsembleManifest, origin: str) -> None:
    check_tiers(manifest.tiers, origin)
    check_spans(manifest.spans, origin)
    responses = manifest.responses
    if responses is None:
        return
    check_response_tiers(responses, manifest.tiers, origin)
    check_response_spans(responses, manifest.spans, origin)
    if manifest.threshold is None:
        raise BundleError(f"{origin}: responses have a threshold, and other texts have none")


def check_heads(manifests: Sequence[Manifest]) -> None:
    """Refuse members whose scores are not of the same things.

    Raises:
        BundleError: they have other heads, or these other classes or labels. The primary heads
            are compared whatever their names.
    """

    def told_apart(manifest: Manifest) -> list[tuple[str, str, int, list[str]]]:
        return [
            ("" if name == manifest.primary else name, head.activation, head.classes, head.labels)
            for name, head in manifest.heads.items()
        ]

    first, *others = manifests
    for other in others:
        if told_apart(other) != told_apart(first):
            raise BundleError(
                "the members of an ensemble must have the same heads, in one order, and these the "
                f"same classes: {MANIFEST_FILE} of {first.backbone.id} has {_shown(first)}, of "
                f"{other.backbone.id} {_shown(other)}"
            )


def _shown(manifest: Manifest) -> str:
    return "; ".join(
        f"{name}: {head.classes} {head.labels}" for name, head in manifest.heads.items()
    )


def mean_decisions(manifests: Sequence[Manifest]) -> dict[str, Decision]:
    """How the mean of the members' scores decides, by head: by the mean of their thresholds.

    Spans have those sizes that all members have thresholds for. Several members have no tiers. A
    member without a threshold of responses has its own for them too.
    """
    names = [list(manifest.heads) for manifest in manifests]
    return {
        of_head[0]: _mean([m.decision(n) for m, n in zip(manifests, of_head, strict=True)])
        for of_head in zip(*names, strict=True)
    }


def _mean(decisions: Sequence[Decision]) -> Decision:
    if len(decisions) == 1:
        return decisions[0]
    sizes = sorted(set.intersection(*({span.tokens for span in one.spans} for one in decisions)))
    return Decision(
        threshold=float(np.mean([one.threshold for one in decisions])),
        spans=_mean_spans([one.spans for one in decisions], sizes),
        labels=_mean_labels(decisions),
        responses=_mean_responses(decisions, sizes),
    )


def _mean_responses(
    decisions: Sequence[Decision], sizes: Sequence[int]
) -> ResponseThresholds | None:
    if not any(one.responses for one in decisions):
        return None
    own = [(one.responses.spans if one.responses else []) for one in decisions]
    spans = [of_responses or one.spans for of_responses, one in zip(own, decisions, strict=True)]
    return ResponseThresholds(
        float(np.mean([(d.responses or d).threshold for d in decisions])),
        spans=_mean_spans(spans, sizes) if any(own) else [],
    )


def _mean_spans(
    members: Sequence[Sequence[SpanThreshold]], sizes: Sequence[int]
) -> list[SpanThreshold]:
    """The mean thresholds of the sizes that every member has."""
    by_size = [{span.tokens: span.threshold for span in spans} for spans in members]
    return [SpanThreshold(size, float(np.mean([of[size] for of in by_size]))) for size in sizes]


def _mean_labels(decisions: Sequence[Decision]) -> list[LabelDecision]:
    """The mean thresholds of labels; a member without them has its own threshold for each."""
    labelled = next((one.labels for one in decisions if one.labels), [])
    return [
        LabelDecision(
            label.name,
            float(np.mean([d.labels[i].threshold if d.labels else d.threshold for d in decisions])),
        )
        for i, label in enumerate(labelled)
    ]
