"""The same generative guard in onnxruntime-genai, the fastest generation that ONNX Runtime has."""

import json
import subprocess
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from siren_bench.engines.engine import Work
from siren_bench.records.kept import made_whole
from siren_runtime.commands.origin import installed_versions
from siren_runtime.errors import install_hint
from siren_runtime.generation.engine import import_genai
from siren_runtime.generation.folder import read_folder

from .generation import Generation, OneAtATime
from .missing import PeerMissing

GenaiDtype = Literal["float32", "int4"]
_PRECISIONS: dict[GenaiDtype, str] = {"float32": "fp32", "int4": "int4"}


@dataclass(frozen=True)
class Genai(OneAtATime):
    """onnxruntime-genai's Generator on the CPU.

    Attributes:
        model: A folder that its model builder wrote.
    """

    model: Path
    dtype: GenaiDtype
    threads: int
    generation: Generation

    @property
    def name(self) -> str:
        return f"onnxruntime-genai {self.dtype}, {self.generation}"

    @property
    def model_key(self) -> Hashable:
        return "genai", self.model, self.threads

    @property
    def work(self) -> Work:
        return self.generation.work(self.dtype)

    def versions(self) -> dict[str, str]:
        return installed_versions("onnxruntime-genai", "onnxruntime")

    def load(self) -> Any:
        onnxruntime_genai = import_genai()
        config = onnxruntime_genai.Config(str(self.model))
        options = {"session_options": {"intra_op_num_threads": self.threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        model = onnxruntime_genai.Model(config)
        return model, onnxruntime_genai.Tokenizer(model), read_folder(self.model).window

    def score(self, model: Any, text: str) -> None:
        _, tokenizer, _ = model
        template = self.generation.template
        prompt = list(tokenizer.encode(template)) if template else []
        generator = self.begin(model, [*prompt, *tokenizer.encode(text)])
        for _ in range(self.generation.new_tokens):
            generator.generate_next_token()

    def begin(self, model: Any, ids: Sequence[int]) -> Any:
        """Read a prompt of tokens.

        Returns:
            A generator, whose `generate_next_token()` may be called as often as there are new
            tokens in `generation`.
        """
        onnxruntime_genai = import_genai()
        language_model, _, window = model
        length = len(ids) + self.generation.new_tokens
        parameters = onnxruntime_genai.GeneratorParams(language_model)
        # A least length keeps it from ending before it has written all of its tokens. Its cache,
        # which is as long as the most, must hold a whole window.
        most = max(length, window + 1)
        parameters.set_search_options(do_sample=False, min_length=length, max_length=most)
        generator = onnxruntime_genai.Generator(language_model, parameters)
        generator.append_tokens(ids)
        return generator


def build_genai(backbone: Path, folder: Path, dtype: GenaiDtype) -> Path:
    """Build a language model with onnxruntime-genai's model builder, once.

    Raises:
        PeerMissing: it is not installed, or cannot build the model.
    """
    if find_spec("onnxruntime_genai") is None:
        raise PeerMissing(f"onnxruntime-genai is not installed; {install_hint('bench-peers')}")
    model = folder / f"genai-{dtype}"
    if not model.exists():
        with made_whole(model) as unfinished:
            arguments = [backbone, unfinished, _PRECISIONS[dtype], folder / "genai-cache"]
            command = [
                sys.executable,
                "-m",
                "siren_bench.peers.genai_builder",
                *map(str, arguments),
            ]
            done = subprocess.run(command, capture_output=True)
            if done.returncode or not (unfinished / "genai_config.json").exists():
                said = done.stderr.decode(errors="replace").strip().splitlines()
                last = said[-1] if said else "it said nothing"
                raise PeerMissing(f"onnxruntime-genai cannot build {backbone}: {last}")
    return model
