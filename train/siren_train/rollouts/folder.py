"""A generator in this process: a model folder of onnxruntime-genai, which nothing guards.

The head of a grafted folder is not asked, so that harmful continuations come as they are.
"""

from pathlib import Path

from siren_runtime.errors import InputError
from siren_runtime.generation.engine import Engine, Run
from siren_runtime.generation.prompts import check_encodable
from siren_runtime.generation.sampling import Sampling as Draws

from .generator import Sampling, messages_of, plain_text


class FolderGenerator:
    """An open folder. Threads may share it.

    Attributes:
        digest: the SHA-256 that names its model, of graph and weights.
    """

    def __init__(self, folder: Path, sampling: Sampling, *, threads: int | None = None) -> None:
        """Open a folder.

        Args:
            threads: CPU threads; None takes as many as the folder's config says, else all cores.

        Raises:
            BundleError: the folder is none of onnxruntime-genai.
            BackendError: onnxruntime-genai is missing, or cannot load the folder.
            InputError: `threads` is out of range.
        """
        self._engine, self._sampling = Engine(folder, threads=threads), sampling
        self.digest = self._engine.model.digest()

    def check(self, prompt: str, prefix: str) -> None:
        """See, without a run, that the model can go on with this.

        Raises:
            InputError: there is no prompt, which a chat needs, or the model has no room for it; or
                a text is none that it can read.
            BackendError: the folder has no chat template.
        """
        self._tokens(prompt, prefix)

    def go_on(self, prompt: str, prefix: str, seed: int) -> str:
        """Return how the generator goes on, which may be empty.

        Raises:
            InputError: as `check`; or `seed` is out of range.
            BackendError: the engine fails, or the folder has no chat template.
        """
        sampling = self._sampling
        draws = Draws(temperature=sampling.temperature, seed=seed).search()
        tokens = self._tokens(prompt, prefix)
        run = self._engine.run(len(tokens) + sampling.max_tokens, draws)
        try:
            run.append(tokens)
            return self._said(run)
        finally:
            run.close()

    def _tokens(self, prompt: str, prefix: str) -> list[int]:
        """What stands there, if the model has room to go on."""
        for what, text in (("the prompt", prompt), ("the prefix", prefix)):
            check_encodable(what, text)
        if self._sampling.api == "completions":
            text = plain_text(prompt, prefix)
        else:
            text = self._engine.chat(messages_of(prompt, prefix)[:1]) + prefix
        tokens, most = self._engine.encode(text), self._sampling.max_tokens
        room = max(self._engine.model.context_length - most, 0)
        if not 0 < len(tokens) <= room:
            raise InputError(
                f"{(prompt or prefix)[:80]!r} and what stands behind it have {len(tokens):,} "
                f"tokens; the model of {self._engine.folder} goes on with 1 to {room:,}, beside "
                f"{most:,} of --max-tokens"
            )
        return tokens

    def _said(self, run: Run) -> str:
        """The text that comes, up to the model's end of text or the most tokens."""
        pieces, said = self._engine.pieces(), []
        for _ in range(self._sampling.max_tokens):
            token = run.step()
            if token in self._engine.ends:
                break
            said.append(pieces.decode(token))
        return "".join(said)
