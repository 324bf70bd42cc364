"""The same generative guard exported to ONNX by Optimum, in a Python environment of its own.

optimum-onnx 0.1 wants an older transformers than the rest of the bench, so `siren bench
setup-optimum` makes an environment beside it, and an engine talks to a worker there over pipes.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from siren_bench.engines.engine import Work
from siren_bench.records.kept import made_whole
from siren_runtime.errors import SirenError

from .generation import Generation, OneAtATime
from .missing import PeerMissing

REQUIREMENTS = ("optimum-onnx[onnxruntime]==0.1.0", "accelerate>=1", "torch==2.13.0")
_WORKER = Path(__file__).with_name("optimum_worker.py")


@dataclass(frozen=True)
class Optimum(OneAtATime):
    """ORTModelForCausalLM.generate on ONNX Runtime.

    Attributes:
        model: The folder that Optimum exported to, float32.
        python: The interpreter of Optimum's environment.
    """

    model: Path
    python: Path
    threads: int
    generation: Generation

    @property
    def name(self) -> str:
        return f"Optimum ONNX generate float32, {self.generation}"

    @property
    def model_key(self) -> Hashable:
        return "optimum", self.model, self.threads

    @property
    def work(self) -> Work:
        return self.generation.work("float32")

    def versions(self) -> dict[str, str]:
        packages = [str(path) for path in self.python.parents[1].glob("lib/python*/site-packages")]
        installed = {d.name: d.version for d in metadata.distributions(path=packages)}
        return {
            name: installed[name]
            for name in ("optimum-onnx", "onnxruntime", "transformers")
            if name in installed
        }

    def load(self) -> Any:
        arguments = [str(self.python), "-I", str(_WORKER), "serve"]
        arguments += [str(self.model), str(self.threads)]
        log = tempfile.TemporaryFile()  # noqa: SIM115 - the worker's, as long as it runs
        worker = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        model = _Worker(worker, log)
        model.receive()
        return model

    def score(self, model: Any, text: str) -> None:
        generation = self.generation
        request = {
            "template": generation.template,
            "text": text,
            "new_tokens": generation.new_tokens,
        }
        model.send(request)
        model.receive()


@dataclass(frozen=True)
class _Worker:
    """A process that generates, and the file of what it writes to standard error."""

    process: "subprocess.Popen[bytes]"
    log: IO[bytes]

    def send(self, request: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> None:
        """Wait for an answer.

        Raises:
            SirenError: the process ended.
        """
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            status = self.process.wait()
            self.log.seek(0)
            raise SirenError(
                f"Optimum's worker ended with status {status}: {_last_line(self.log.read())}"
            )


def optimum_environment() -> Path:
    """Where Optimum's environment lies: under XDG_CACHE_HOME, or ~/.cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "siren-edge" / "bench" / "optimum-onnx-0.1.0"


def set_up_optimum() -> Path:
    """Make Optimum's environment with this Python's venv and pip; return its folder.

    Raises:
        SirenError: one of them failed.
    """
    folder = optimum_environment()
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", *REQUIREMENTS],
    ):
        if subprocess.run(command, stdout=sys.stderr).returncode:
            raise SirenError(f"{' '.join(command)} failed; its output is above")
    return folder


def export_with_optimum(backbone: Path, folder: Path) -> tuple[Path, Path]:
    """Export a language model with its key/value cache, once.

    Returns:
        The exported folder and the interpreter that runs it.

    Raises:
        PeerMissing: the environment is not set up, or Optimum cannot export the model.
    """
    python = optimum_environment() / "bin" / "python"
    if not python.exists():
        raise PeerMissing("its environment is not set up; run siren bench setup-optimum")
    model = folder / "optimum"
    if not model.exists():
        with made_whole(model) as unfinished:
            done = subprocess.run(
                [python, "-I", _WORKER, "export", backbone, unfinished], capture_output=True
            )
            if done.returncode:
                raise PeerMissing(f"Optimum cannot export {backbone}: {_last_line(done.stderr)}")
    return model, python


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
