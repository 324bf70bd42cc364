"""The fastest precision whose scores stay within a budget of float32's, found by measurement.

Uniform precisions first. One that is faster than all that stay within the budget, but misses it,
is tried again with its most sensitive layers in float32, as few of them as the budget allows.
"""

import platform
import shutil
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from operator import ne
from pathlib import Path

import msgspec
import numpy as np

from siren_export.bundle_writer import scratch
from siren_export.export import export_bundle
from siren_export.heads.base import Artifact
from siren_export.sources.checkpoint import Checkpoint
from siren_export.verify.texts import TEXTS
from siren_runtime import Guard, ScoreResult
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.bundle.reader import Bundle
from siren_runtime.bundle.report import Candidate, Tuning
from siren_runtime.bundle.types import Precision
from siren_runtime.errors import InputError
from siren_runtime.text.reading import AS_LLM_SIREN

from .sensitivity import measure_layers
from .timing import time_in_turns

DEFAULT_BUDGET = 0.005

_TIMED_TEXTS = 24
_CHARACTERS_PER_TOKEN = 16  # more than any language has
_PROBE_TEXTS, _PROBE_CHARACTERS = 12, 200
_BATCH = 64
_HALF_MACHINES = ("aarch64", "arm64")  # ONNX Runtime has no float16 products for other CPUs
_QUANTIZED: tuple[Precision, ...] = ("int8", "int4")


def tune(
    artifact: Artifact,
    checkpoint: Checkpoint,
    output: Path,
    *,
    budget: float = DEFAULT_BUDGET,
    texts: Sequence[str] = TEXTS,
    tried: Callable[[Candidate], None] = lambda candidate: None,
    progress: Progress = silent,
) -> Tuning:
    """Find the fastest setting for ONNX Runtime on this machine's CPU, and what else was tried.

    `export_bundle` makes the bundle of it:

        tuning = tune(artifact, checkpoint, output)
        kept = kept_candidate(tuning)
        export_bundle(artifact, checkpoint, output, precision=kept.precision,
                      keep_float=frozenset(kept.keep_float), tuning=tuning)

    Each setting is exported to a hidden folder beside `output`, measured and removed. Every
    text is scored; times are of up to 24 of them, evenly spaced by length, one at a time, in
    turns with float32. So float32 and one other engine are in memory at a time.

    Args:
        output: where the bundle will be, and so on which disk there is room.
        budget: how far from float32 a setting may lie: the mean |score difference|, and the
            share of texts whose verdict changes, are each at most this.
        texts: as the guard will see them; by default those that exports are verified on.
        tried: called with each setting that was measured, its outcome still provisional.

    Raises:
        InputError: the budget is not from 0 to 1, or there is no text.
        ArtifactError, CheckpointError, BundleError, BackendError: as `export_bundle` and
            `Guard.load`.
    """
    if not 0 <= budget <= 1:
        raise InputError(f"budget must lie from 0 to 1, found {budget}")
    if artifact.task == "trajectory":
        raise InputError(
            f"{artifact.source}: a precision is chosen by how it scores texts, and this head "
            "scores trajectories; name the precision"
        )
    if not texts:
        raise InputError("a precision is chosen by how it scores texts; found none")
    with scratch(output) as folder:
        workshop = _Workshop(artifact, checkpoint, folder, budget, texts, tried, progress)
        workshop.run()
    best = workshop.best
    candidates = [
        msgspec.structs.replace(
            candidate, kept=candidate is best, outcome=_outcome(candidate, best)
        )
        for candidate in workshop.candidates
    ]
    return Tuning(budget, len(texts), candidates)


def kept_candidate(tuning: Tuning) -> Candidate:
    """The setting that was chosen."""
    return next(candidate for candidate in tuning.candidates if candidate.kept)


@dataclass
class _Workshop:
    """What has been tried so far, and the float32 bundle that all is compared with."""

    artifact: Artifact
    checkpoint: Checkpoint
    folder: Path
    budget: float
    texts: Sequence[str]
    tried: Callable[[Candidate], None]
    progress: Progress
    candidates: list[Candidate] = field(default_factory=list)
    float_manifest: Manifest = field(init=False)
    expected: np.ndarray = field(init=False)  # float32's scores
    verdicts: list[bool | None] = field(init=False)  # and verdicts
    _float_milliseconds: float = field(init=False)  # of its first turns, which come before all

    def run(self) -> None:
        self.float_manifest = self._export(self._float_bundle, "fp32")
        with Guard.load(self._float_bundle, backend="cpu", **AS_LLM_SIREN) as guard:
            self.expected, self.verdicts = self._judged(guard)
        uniform: list[Precision] = [*_QUANTIZED]
        if platform.machine() in _HALF_MACHINES:
            uniform.insert(0, "fp16")
        for precision in ("fp32", *uniform):
            self._try(precision)
        for candidate in sorted(self.candidates, key=lambda candidate: -candidate.speed):
            if candidate.precision in _QUANTIZED and not self._within(candidate):
                self._refine(candidate)

    @property
    def best(self) -> Candidate:
        """The fastest within the budget; float32 always is."""
        within = [candidate for candidate in self.candidates if self._within(candidate)]
        return max(within, key=lambda candidate: candidate.speed)

    @property
    def _float_bundle(self) -> Path:
        return self.folder / "float"

    def _refine(self, uniform: Candidate) -> None:
        """Leave the fewest layers in float32 with which the precision stays within the budget.

        The time rises with each and the error falls, so their number doubles from one until it is
        enough, and is bisected from there.
        """
        if uniform.speed <= self.best.speed:
            return
        probes = self.folder / "probes"
        probes.mkdir()
        layers = measure_layers(
            self.artifact,
            self.checkpoint,
            Bundle(self._float_bundle, self.float_manifest),
            probes,
            uniform.precision,
            [text[:_PROBE_CHARACTERS] for text in _evenly(self.texts, _PROBE_TEXTS)],
            self.progress,
        )
        shutil.rmtree(probes)
        too_few, enough = 0, len(layers)
        while enough - too_few > 1:
            number = min(2 * too_few or 1, (too_few + enough) // 2)
            before = self.best.speed
            keep_float = frozenset[str]().union(*(layer.matrices for layer in layers[:number]))
            candidate = self._try(uniform.precision, keep_float)
            if self._within(candidate):
                enough = number
            elif candidate.speed <= before:
                return
            else:
                too_few = number

    def _try(self, precision: Precision, keep_float: Set[str] = frozenset()) -> Candidate:
        is_float = precision == "fp32"
        bundle = self._float_bundle if is_float else self.folder / "candidate"
        manifest = self.float_manifest if is_float else self._export(bundle, precision, keep_float)
        with Guard.load(bundle, backend="cpu", **AS_LLM_SIREN) as guard:
            scores, verdicts = self._judged(guard)
            if is_float:
                milliseconds = reference = time_in_turns([guard], self._timed, self.progress)[0]
            else:
                with Guard.load(self._float_bundle, backend="cpu", **AS_LLM_SIREN) as float_guard:
                    reference, milliseconds = time_in_turns(
                        [float_guard, guard], self._timed, self.progress
                    )
        if not is_float:
            shutil.rmtree(bundle)
        speed = reference / milliseconds
        if is_float:
            self._float_milliseconds = milliseconds
        differences = np.abs(scores - self.expected)
        candidate = Candidate(
            precision=precision,
            keep_float=sorted(keep_float),
            bytes=sum(file.size for file in manifest.files.values()),
            milliseconds=self._float_milliseconds / speed,
            speed=speed,
            mean_difference=float(differences.mean()),
            p99_difference=float(np.quantile(differences, 0.99)),
            max_difference=float(differences.max()),
            changed_verdicts=sum(map(ne, verdicts, self.verdicts)),
            outcome="within budget",
        )
        if not self._within(candidate):
            candidate = msgspec.structs.replace(candidate, outcome="over budget")
        self.candidates.append(candidate)
        self.tried(candidate)
        return candidate

    def _export(
        self, bundle: Path, precision: Precision, keep_float: Set[str] = frozenset()
    ) -> Manifest:
        return export_bundle(
            self.artifact,
            self.checkpoint,
            bundle,
            precision=precision,
            stream=False,
            keep_float=keep_float,
            progress=self.progress,
        )

    def _judged(self, guard: Guard) -> tuple[np.ndarray, list[bool | None]]:
        """The score of each text, float64 [texts], and its verdict."""
        found: list[ScoreResult] = []
        for start in range(0, len(self.texts), _BATCH):
            found += guard.score_batch(self.texts[start : start + _BATCH])
            self.progress("compare", len(found), len(self.texts))
        return np.array([one.score for one in found]), [one.is_harmful for one in found]

    @property
    def _timed(self) -> list[str]:
        """Without what the guard does not read: tokenizing that would drown the engine's time."""
        read = _CHARACTERS_PER_TOKEN * self.artifact.max_length
        return _evenly([text[:read] for text in self.texts], _TIMED_TEXTS)

    def _within(self, candidate: Candidate) -> bool:
        changed = candidate.changed_verdicts / len(self.texts)
        return max(candidate.mean_difference, changed) <= self.budget


def _evenly(texts: Sequence[str], count: int) -> list[str]:
    """So many texts at most, evenly spaced by length, the longest among them."""
    ordered = sorted(texts, key=len)
    count = min(count, len(ordered))
    return [ordered[len(ordered) * (place + 1) // count - 1] for place in range(count)]


def _outcome(candidate: Candidate, best: Candidate) -> str:
    if candidate is best:
        return "kept"
    return candidate.outcome if candidate.outcome.startswith("over") else "slower"
