"""The reference that scores are compared with: llm-siren's, run here or recorded before."""

import json
import math
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec
from safetensors.numpy import save

from siren_export.heads.base import CONFIG_FILE, WEIGHTS_FILE, Artifact
from siren_export.heads.mlp import MlpHead
from siren_export.heads.polynomial import PolynomialHead
from siren_export.sources.checkpoint import Checkpoint
from siren_runtime.bundle.files import ReadFailures, sha256_of
from siren_runtime.bundle.graphs import exit_spec
from siren_runtime.bundle.progress import Progress
from siren_runtime.errors import ArtifactError, CheckpointError, install_hint

from . import rows
from .gguf_reference import read_model, read_tokenizer
from .texts import TEXTS, added_tokens, digest, own_texts
from .tokens import their_tokenizer
from .trajectories import (
    Example,
    agent_guard,
    agent_guard_over,
    agent_siren_scores,
    with_own,
)
from .trajectories import digest as trajectory_digest
from .transformers_states import llm_siren_loads, load_states
from .unavailable import ReferenceUnavailable


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The scores that a reference gave the built-in texts, and the checkpoint's own ones.

    `head` and `texts` are SHA-256s of siren.safetensors and of the built-in texts. `own_texts` are
    those of `siren_export.verify.texts.own_texts`, written out. `rows` are of those heads, by name,
    that are read with it, are its exits or have categories: of each text what
    `siren_export.verify.rows` gives.

    Of the task "trajectory" the scores are of `siren_export.verify.trajectories.with_own`, for
    `max_length`, and there are no texts.
    """

    name: str
    head: str
    texts: str
    scores: list[float]
    own_texts: list[str] = []
    own_scores: list[float] = []
    rows: dict[str, list[list[float]]] = {}
    task: Literal["content", "trajectory"] = "content"
    max_length: int = 0

    @property
    def scored(self) -> list[tuple[str | Example, float]]:
        """Every text, or every trajectory, with its score."""
        if self.task == "trajectory":
            return [*zip(with_own(self.max_length), self.scores, strict=True)]
        built_in = zip(TEXTS, self.scores, strict=True)
        return [*built_in, *zip(self.own_texts, self.own_scores, strict=True)]


@dataclass(frozen=True)
class LlmSiren:
    """The head's official runtime, run in float32 on this machine.

    What it does not load by itself it is handed, as transformers loads it: a GGUF file, and the
    classes of `siren_export.verify.transformers_states`. Code that the checkpoint names is run
    where the checkpoint was opened with trust in it.
    """

    artifact: Artifact
    checkpoint: Checkpoint

    def scores(self, progress: Progress) -> Reference:
        """Score the built-in texts and the checkpoint's own, one by one.

        Raises:
            ReferenceUnavailable: llm-siren is not installed, cannot load this guard, or would
                not fit in memory.
        """
        if self.artifact.task == "trajectory":
            return self._of_trajectories(progress)
        exits = {exit_spec(depth).name: one for depth, one in self.artifact.exits.items()}
        heads = {**self.artifact.heads, **exits}
        for artifact in heads.values():
            if not isinstance(artifact.head, MlpHead | PolynomialHead):
                raise ReferenceUnavailable(
                    f"llm-siren has no heads of kind {artifact.head.spec.kind!r}"
                )
        spec = self.artifact.head.spec
        plain = spec.activation == "softmax" and not spec.categories
        of_heads = [*heads][1:] if plain else [*heads]
        self._check_usable()
        try:
            guard, called = self._load()
            guards = {name: rows.of_head(guard, heads[name]) for name in of_heads}
        except (CheckpointError, ReferenceUnavailable):
            raise
        except Exception as error:  # whatever transformers raises at a model it cannot load
            raise ReferenceUnavailable(f"llm-siren cannot load the guard: {error}") from error
        tokens = added_tokens(self.checkpoint)
        own = own_texts(tokens, self.artifact.max_length)
        texts, scores = [*TEXTS, *own], []
        found: dict[str, list[list[float]]] = {name: [] for name in of_heads}
        for done, text in enumerate(texts, start=1):
            try:
                for name in of_heads:
                    found[name].append(rows.row(guards[name], heads[name], text))
                scores.append(guard.score(text).score if plain else found[of_heads[0]][-1][0])
            except Exception as error:  # of a tokenizer that cannot pad, or an embedding too small
                raise ReferenceUnavailable(
                    f"llm-siren cannot score {text[:80]!r} with the guard: {error}"
                ) from error
            progress("reference", done, len(texts))
        return Reference(
            name=called,
            head=head_hash(self.artifact),
            texts=digest(),
            scores=scores[: len(TEXTS)],
            own_texts=own,
            own_scores=scores[len(TEXTS) :],
            rows=found,
        )

    def _of_trajectories(self, progress: Progress) -> Reference:
        self._check_usable()
        max_length = self.artifact.max_length
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._write_local_artifact(Path(folder))
                guard, called = self._load_agents(Path(folder))
                scores = agent_siren_scores(guard, max_length, progress)
        except (CheckpointError, ReferenceUnavailable):
            raise
        except Exception as error:  # whatever transformers raises at a model it cannot load
            raise ReferenceUnavailable(f"llm-siren cannot score with the guard: {error}") from error
        head, texts = head_hash(self.artifact), trajectory_digest()
        return Reference(called, head, texts, scores, task="trajectory", max_length=max_length)

    def _check_usable(self) -> None:
        """See that llm-siren is here and has the memory, and let it report nothing."""
        self._check_memory()
        try:
            import siren_guard  # noqa: F401  # imports torch
            import transformers
        except ImportError as error:
            raise ReferenceUnavailable(
                f"llm-siren is not installed ({error}); {install_hint('reference')}"
            ) from None
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def _load(self) -> tuple[Any, str]:
        """The guard, and what the reference is called that it gives."""
        if self.checkpoint.is_gguf:
            return self._load_gguf()
        pooling = self.artifact.head.spec.pooling
        if not llm_siren_loads(self.checkpoint, pooling):
            model, called = load_states(self.checkpoint, pooling)
            tokenizer = their_tokenizer(self.checkpoint)
            return rows.llm_siren_guard(self.artifact, model, tokenizer), called
        import torch
        from siren_guard import SirenGuard

        with tempfile.TemporaryDirectory() as folder:
            self._write_local_artifact(Path(folder))
            guard = SirenGuard.from_pretrained(
                folder,
                device="cpu",
                dtype=torch.float32,
                trust_remote_code=self.checkpoint.remote_code is not None,
            )
        return guard, _name("")

    def _load_gguf(self) -> tuple[Any, str]:
        """As `_load`: llm-siren opens folders only, so it is handed what transformers read."""
        try:
            import accelerate  # noqa: F401  # transformers takes it for GGUF files
        except ImportError as error:
            raise ReferenceUnavailable(
                f"transformers reads GGUF files with accelerate ({error}); "
                f"{install_hint('reference')}"
            ) from None
        model, tokenizer = read_model(self.checkpoint), read_tokenizer(self.checkpoint)
        guard = rows.llm_siren_guard(self.artifact, model.made, tokenizer.made)
        given = ", ".join((*model.ours, *tokenizer.ours))
        return guard, _name(f"; of the GGUF file it does not read {given}" if given else "")

    def _load_agents(self, folder: Path) -> tuple[Any, str]:
        """As `_load`, for trajectories; `folder` is of `_write_local_artifact`."""
        called, pooling = _name(""), self.artifact.head.spec.pooling
        if self.checkpoint.is_gguf:
            model = read_model(self.checkpoint).made.model
            return agent_guard_over(folder, model, read_tokenizer(self.checkpoint).made), called
        if not llm_siren_loads(self.checkpoint, pooling):
            model, called = load_states(self.checkpoint, pooling)
            return agent_guard_over(folder, model, their_tokenizer(self.checkpoint)), called
        return agent_guard(folder, trust_code=self.checkpoint.remote_code is not None), called

    def _write_local_artifact(self, folder: Path) -> None:
        """The same head as llm-siren takes it, its backbone named by the local folder."""
        config, tensors = rows.as_llm_siren(self.artifact)
        config["base_model"] = {"model_id": str(self.checkpoint.path.resolve()), "revision": None}
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        if tensors is None:
            (folder / WEIGHTS_FILE).symlink_to((self.artifact.path / WEIGHTS_FILE).resolve())
        else:
            (folder / WEIGHTS_FILE).write_bytes(save(tensors))

    def _check_memory(self) -> None:
        meminfo = Path("/proc/meminfo")
        if not meminfo.exists():
            return
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
        tensors = self.checkpoint.weights.tensors.values()
        needed = 4 * sum(math.prod(tensor.shape) for tensor in tensors)
        if needed > available:
            raise ReferenceUnavailable(
                f"llm-siren in float32 needs {needed / 1e9:.1f} GB of memory, "
                f"{available / 1e9:.1f} GB are available"
            )


def read_reference(path: Path, artifact: Artifact) -> Reference:
    """Read recorded reference scores.

    Raises:
        ArtifactError: the file is damaged, or cannot be read.
        ReferenceUnavailable: the scores belong to another head or other texts.
    """
    with ReadFailures(path, ArtifactError):
        data = path.read_bytes()
    try:
        reference = msgspec.json.decode(data, type=Reference)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path}: not a recorded reference: {error}") from None
    if reference.head != head_hash(artifact):
        raise ReferenceUnavailable(f"{path} was recorded for another {WEIGHTS_FILE}")
    if (
        reference.texts != digest()
        or len(reference.scores) != len(TEXTS)
        or len(reference.own_scores) != len(reference.own_texts)
        or not {*artifact.further} <= {*reference.rows}
    ):
        raise ReferenceUnavailable(f"{path} was recorded for other texts")
    return reference


def write_reference(path: Path, reference: Reference) -> None:
    """Record reference scores, for exports where the reference is not installed."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(reference), indent=1) + b"\n")


def _name(given: str) -> str:
    """What the reference is called: its versions, and what of the backbone is not its own."""
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "transformers"))
    return f"llm-siren {metadata.version('llm-siren')} float32 ({versions}{given})"


def head_hash(artifact: Artifact) -> str:
    return sha256_of(artifact.path / WEIGHTS_FILE)
