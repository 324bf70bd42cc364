"""guard.json of a grafted generator: its type, its strict reading, its writing."""

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from siren_runtime.bundle.backbone import Backbone
from siren_runtime.bundle.files import ReadFailures
from siren_runtime.bundle.heads import Decision, HeadSpec, check_decision, check_pass
from siren_runtime.bundle.manifest import (
    MANIFEST_FILE,
    FileSpec,
    HeadName,
    check_relative,
)
from siren_runtime.bundle.reader import read_manifest
from siren_runtime.bundle.types import Positive, Sha256, Strict
from siren_runtime.errors import BundleError

FORMAT_VERSION = 2
HEAD_FILE: Final = "head.onnx"

TextForm = Literal["plain", "chat"]
Pooled = Literal["conversation", "response"]


class TrainedOn(Strict, frozen=True):
    """What features a head was trained on.

    `engine` is the digest of the model folder whose own they were. `text` says whether texts stood
    in the chat template, whose markup is pooled with them, or were plain. `tokenizer` is the digest
    of the tokenizer's files and the chat template's; None in what earlier releases made.
    """

    engine: Sha256
    text: TextForm
    tokenizer: Sha256 | None = None


class GraftCheck(Strict, frozen=True):
    """What grafting compared, on `prompts` prompts of `tokens` tokens in all, generated ones
    included.

    Tokens generated with and without the graft were equal, and the neurons were those of the
    engine's own states but for `max_difference`.
    """

    prompts: Positive
    tokens: Positive
    max_difference: float


class GraftManifest(Strict, frozen=True):
    """guard.json of a grafted generator.

    `heads` are by name, the primary one first. They read `neurons` together, of which `width`
    numbers a token leave the graph: the neurons themselves, or the fewer that the heads' first
    matrices make of them, which are then their `features`. `decisions` are theirs, by name.
    `trained_on` is None where a head does not say what it was trained on: features of the
    checkpoint in float32, of plain text. Where a head was trained on another engine or tokenizer
    than the folder's, it is that. `pooled` says which tokens count: all of the conversation, chat
    markup included, or the response's alone. `engine` is the digest of the folder that was
    grafted. `files` maps each file but guard.json to what it must be; `weights` names those that
    the graph takes weights from, and `linked` those that were made as hard links.
    """

    format_version: int
    task: Literal["generation"]
    backbone: Backbone
    heads: Annotated[dict[HeadName, HeadSpec], msgspec.Meta(min_length=1)]
    neurons: Positive
    width: Positive
    trained_on: TrainedOn | None
    pooled: Pooled
    decisions: dict[str, Decision]
    engine: Sha256
    files: dict[str, FileSpec]
    weights: list[str]
    linked: list[str]
    check: GraftCheck | None
    versions: dict[str, str]
    created: str

    @property
    def head(self) -> HeadSpec:
        """The primary head, whose score is the guard's."""
        return next(iter(self.heads.values()))

    @property
    def threshold(self) -> float:
        """The primary head's."""
        return self.decisions[next(iter(self.heads))].threshold

    def decision(self, name: str) -> Decision:
        """How the head of that name decides."""
        return self.decisions[name]


# The output of a grafted graph that holds what heads read, float32 [batch, tokens, width].
NEURONS_OUTPUT: Final = "siren.harm.neurons"


def encode(manifest: GraftManifest) -> bytes:
    """Write guard.json: indented, keys in the order of the type."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


class _Kind(msgspec.Struct):
    format_version: int
    task: str


def is_grafted(folder: Path) -> bool:
    """Whether a folder's guard.json says that it is a grafted generator's."""
    try:
        data = read_manifest(folder.resolve(), MANIFEST_FILE)
        return msgspec.json.decode(data, type=_Kind).task == "generation"
    except (BundleError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False


def load_manifest(folder: Path) -> GraftManifest:
    """Read guard.json of a grafted folder.

    Raises:
        BundleError: there is none, it is a guard's that scores text, of another format version, or
            damaged.
    """
    origin = str(folder / MANIFEST_FILE)
    with ReadFailures(folder):
        is_there = (folder / MANIFEST_FILE).is_file()
    if not is_there:
        raise BundleError(
            f"{folder}: not a grafted generator, it has no {MANIFEST_FILE}; make one with "
            "siren graft"
        )
    data = read_manifest(folder.resolve(), MANIFEST_FILE)
    try:
        kind = msgspec.json.decode(data, type=_Kind)
        if kind.task != "generation":
            raise BundleError(
                f"{origin}: a guard that scores text, not a grafted generator; load it with "
                "Guard.load, or make a generator with siren graft"
            )
        if kind.format_version != FORMAT_VERSION:
            hint = "update siren-edge" if kind.format_version > FORMAT_VERSION else "graft it again"
            raise BundleError(
                f"{origin}: format version {kind.format_version}, this runtime reads "
                f"{FORMAT_VERSION}; {hint}"
            )
        manifest = msgspec.json.decode(data, type=GraftManifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{origin}: not a valid manifest: {error}") from None
    for name in manifest.files:
        check_relative(name, origin)
    if set(manifest.decisions) != set(manifest.heads):
        raise BundleError(
            f"{origin}: decisions are those of {sorted(manifest.decisions)}, heads "
            f"{sorted(manifest.heads)}"
        )
    check_pass(manifest.heads, manifest.backbone.blocks_kept, "width", manifest.width, origin)
    for name, head in manifest.heads.items():
        check_decision(name, head, manifest.decisions[name], origin)
    if HEAD_FILE not in manifest.files:
        raise BundleError(f"{origin}: files lacks {HEAD_FILE!r}")
    return manifest
