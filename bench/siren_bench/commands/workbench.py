"""Everything that the benchmarks of one guard share: its bundles, engines and peers."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from siren_bench.engines.cost import ModelSize, model_size
from siren_bench.engines.engine import Engine, SirenEdge
from siren_bench.peers.missing import PeerMissing
from siren_bench.peers.registry import make_peer
from siren_bench.records.progress import console, say
from siren_bench.records.samples import reason
from siren_bench.subjects.subject import MAX_LENGTH, Subject, find_subject, folder_name
from siren_export.commands.heads import load_heads
from siren_export.export import export_bundle
from siren_export.heads.base import Artifact
from siren_export.sources.checkpoint import Checkpoint, load_checkpoint
from siren_runtime.bundle.manifest import MANIFEST_FILE
from siren_runtime.bundle.types import Precision
from siren_runtime.errors import InputError

from .options import WITH_SPANS


@dataclass(frozen=True)
class Workbench:
    """Heads, their backbone, and a folder for what is made of them."""

    subject: Subject
    artifact: Artifact
    checkpoint: Checkpoint
    folder: Path

    @property
    def described(self) -> dict[str, Any]:
        """What a record says of it: in words, and the SHA-256 of the weights of each head."""
        heads = self.artifact.heads.items()
        return {
            "head": self.subject.description,
            "weights_sha256": {name: head.weights_sha256 for name, head in heads},
        }

    @property
    def size(self) -> ModelSize:
        """The shape that operations and bytes are counted from."""
        return model_size(self.artifact, self.checkpoint.config)

    def bundle(self, precision: str) -> Path:
        """Return the bundle of a precision, exported the first time."""
        path = self.folder / f"bundle-{precision}-{self.artifact.max_length}"
        if not (path / MANIFEST_FILE).exists():
            with console.status(f"exporting {precision}"):
                export_bundle(
                    self.artifact, self.checkpoint, path, precision=cast("Precision", precision)
                )
        return path

    def engines(
        self, precisions: Sequence[str], peers: Sequence[str], threads: int
    ) -> tuple[list[Engine], dict[str, str]]:
        """Make our engines and the peers.

        Args:
            precisions: Each by itself, or with `options.WITH_SPANS` behind it.

        Returns:
            The engines, ours first, and for each peer that cannot run here what is missing.

        Raises:
            InputError: spans are asked for, and the heads' decision has no thresholds of them.
        """
        engines: list[Engine] = [self._ours(precision, threads) for precision in precisions]
        missing = {}
        for name in peers:
            with console.status(f"preparing {name}"):
                try:
                    engines.append(make_peer(name, self, threads))
                except PeerMissing as error:
                    missing[name] = str(error)
                except Exception as error:  # whatever a peer's libraries raise
                    missing[name] = reason(error)
        for name, why in missing.items():
            say(f"without {name}: {why}")
        return engines, missing

    def _ours(self, name: str, threads: int) -> SirenEdge:
        precision = name.removesuffix(WITH_SPANS)
        spans = name != precision
        if spans and not self.artifact.decision.spans:
            raise InputError(
                f"{name}: {self.subject.description} has no thresholds of spans; give {precision}"
            )
        return SirenEdge(self.bundle(precision), precision, threads, spans=spans)


@contextmanager
def open_workbench(
    head: str,
    backbone: Path | None = None,
    keep: Path | None = None,
    longest: int = MAX_LENGTH,
) -> Iterator[Workbench]:
    """Find a head and make a place to work on it.

    Args:
        head: The name of a shape or of a shipped guard, or a head's folder.
        backbone: The backbone's folder, in place of the head's own.
        keep: Where checkpoints, bundles and exports of peers are kept and found again; None for
            a temporary folder.
        longest: The tokens that a shape's head must take at least.

    Raises:
        SirenError: as `find_subject`.
    """
    with tempfile.TemporaryDirectory(prefix="siren-bench-") as scratch:
        folder = (keep or Path(scratch)) / folder_name(head, backbone)
        subject = find_subject(head, folder, backbone, max(longest, MAX_LENGTH))
        yield Workbench(
            subject, load_heads(subject.heads), load_checkpoint(subject.backbone), folder
        )


def engine_settings(engines: Sequence[Engine], missing: dict[str, str]) -> dict[str, Any]:
    """Describe engines for a record: what each is made of, and what is missing."""
    return {
        "engines": [
            {"name": engine.name, "versions": engine.versions(), "work": vars(engine.work)}
            for engine in engines
        ],
        "missing": missing,
    }
