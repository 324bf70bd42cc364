"""onnxruntime-genai: a model that is open, and runs of it, token by token."""

import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from siren_runtime.backends.onnxruntime.providers import import_onnxruntime
from siren_runtime.backends.onnxruntime.session import usable_threads
from siren_runtime.backends.outputs import FloatArray
from siren_runtime.backends.process import OpeningProcess, keep_in_children
from siren_runtime.errors import BackendError, install_hint

from .chat import Message, chat_text, check_no_nul, control_tokens
from .failures import GenaiFailures
from .folder import read_folder

Device = Literal["auto", "cpu"]


def import_genai() -> ModuleType:
    """Import onnxruntime-genai, with its telemetry off unless the environment says otherwise.

    Raises:
        BackendError: it is not installed; the message names the extra that brings it.
    """
    import_onnxruntime()  # which sets what must be set before either is imported
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise BackendError(
            f"onnxruntime-genai cannot be imported ({error}); {install_hint('generate')}"
        ) from error
    module: ModuleType = onnxruntime_genai
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1" and hasattr(
        module, "disable_telemetry_events"
    ):
        module.disable_telemetry_events()
    return module


# As ONNX Runtime counts them. onnxruntime-genai's own default is half of the processors: one thread
# of two, which takes 1.7 times as long to read 256 tokens with SmolLM2 in int4.
_ALL_CORES = 0

_AT_A_TOKEN = GenaiFailures("onnxruntime-genai failed at a token")


class Engine:
    """A model folder that is open. Threads may share it; each has runs of its own."""

    def __init__(
        self, folder: Path, *, threads: int | None = None, device: Device = "auto"
    ) -> None:
        """Open a folder.

        Args:
            threads: CPU threads; None takes as many as the folder's config says, else all cores.
            device: "auto" is what the folder was built for; "cpu" runs it there.

        Raises:
            BundleError: the folder is none of onnxruntime-genai.
            BackendError: onnxruntime-genai is missing, or cannot load the folder.
            InputError: `threads` is out of range.
        """
        self.folder, self.model = folder, read_folder(folder)
        self._genai = import_genai()
        self._process = OpeningProcess()
        overlay: dict[str, Any] = {}
        if threads is not None:
            overlay["intra_op_num_threads"] = usable_threads(threads)
        elif self.model.threads is None:
            overlay["intra_op_num_threads"] = _ALL_CORES
        with GenaiFailures(f"{folder}: onnxruntime-genai cannot load the model"):
            config = self._genai.Config(str(folder))
            if device == "cpu":
                config.clear_providers()
            if overlay:
                settings = {"model": {"decoder": {"session_options": overlay}}}
                config.overlay(msgspec.json.encode(settings).decode())
            self._model = self._genai.Model(config)
            self._tokenizer = self._genai.Tokenizer(self._model)
            self.ends = frozenset(int(token) for token in self._tokenizer.eos_token_ids)
        keep_in_children(self._model)

    def chat(self, messages: Sequence[Message]) -> str:
        """The text of messages by the model's chat template, up to where the response begins.

        Raises:
            BackendError: the model has no chat template, or none that onnxruntime-genai can read.
            InputError: it refuses the messages, or one holds a NUL.
        """
        return chat_text(self._tokenizer, messages)

    @cached_property
    def control(self) -> tuple[str, ...]:
        """The texts that would begin or end turns of a chat, where a message held them.

        Raises:
            BundleError: a file of the tokenizer cannot be read.
        """
        return control_tokens(self.folder, self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, as the model's tokenizer makes them.

        Raises:
            BackendError: it cannot.
            InputError: the text holds a NUL.
        """
        check_no_nul(text)
        with GenaiFailures("the tokenizer cannot take the text"):
            return [int(token) for token in self._tokenizer.encode(text)]

    def pieces(self) -> Any:
        """A decoder of one token after the other: `decode(token)` gives the text that is complete.

        What a token begins and later ones end, such as a character of several, comes with the last.
        """
        return self._tokenizer.create_stream()

    def run(self, max_length: int, search: Mapping[str, Any]) -> "Run":
        """Begin a run.

        Args:
            max_length: of prompt and response together, in tokens.
            search: options of onnxruntime-genai's search, such as temperature and top_p.

        Raises:
            BackendError: an option is not known, or there is no memory for the run.
        """
        self._process.check()
        max_length = max(max_length, self.model.window + 1)  # a cache must hold a whole window
        with GenaiFailures("onnxruntime-genai cannot begin"):
            params = self._genai.GeneratorParams(self._model)
            params.set_search_options(**{**search, "max_length": max_length})
            return Run(self._genai.Generator(self._model, params), self._process)

    def run_rows(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        search: Mapping[str, Any],
        outputs: Sequence[str],
    ) -> "Sequence[Run | RowRun]":
        """Begin a run of each prompt. Several are one batch, whose prompts are read here at once:
        onnxruntime-genai takes those of a batch in no parts.

        A prompt that ends in the padding runs by itself, since in a batch its end would not count.
        Where blocks have windows, the engine takes prompts of one length only; others run one by
        one.

        Args:
            new_tokens: that each may grow by.
            search: as `run`.
            outputs: those that are kept of each row.

        Raises:
            BackendError: as `run`, or the engine failed in the prompts.
        """
        together = [row for row, tokens in enumerate(prompts) if tokens[-1] != self.model.padding]
        lengths = {len(prompts[row]) for row in together}
        if len(together) == 1 or (self.model.window and len(lengths) > 1):
            together = []
        rows = self._batch([prompts[row] for row in together], new_tokens, search, outputs)
        runs: dict[int, Run | RowRun] = dict(zip(together, rows, strict=True))
        return [
            runs.get(row) or self.run(len(tokens) + new_tokens, search)
            for row, tokens in enumerate(prompts)
        ]

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        search: Mapping[str, Any],
        outputs: Sequence[str],
    ) -> "list[RowRun]":
        """A run of each prompt, as rows of one batch; of no prompts none."""
        if not prompts:
            return []
        longest = max(map(len, prompts))
        run = self.run(longest + new_tokens, {**search, "batch_size": len(prompts)})
        # The engine takes what is behind a prompt for padding, and counts its positions without.
        padded = np.full((len(prompts), longest), self.model.padding, np.int32)
        for row, tokens in zip(padded, prompts, strict=True):
            row[: len(tokens)] = tokens
        batch = Batch(run, padded, outputs)
        return [RowRun(batch, row, len(tokens)) for row, tokens in enumerate(prompts)]


class Run:
    """One sequence as it grows. Its outputs are those of the last forward pass.

    Attributes:
        process: the one in which it goes on.
    """

    def __init__(self, generator: Any, process: OpeningProcess) -> None:
        """Begin with no token.

        Args:
            generator: onnxruntime-genai's.
            process: in which the engine was opened.
        """
        self._generator, self.process = generator, process
        keep_in_children(generator)
        self._read: tuple[int, ...] = 0, 0  # rows and tokens of the last pass
        self._has_unread = False  # a token that was chosen, and is read with the next step

    def append(self, tokens: Sequence[int] | npt.NDArray[np.int32]) -> None:
        """Read tokens; of several rows, as many of each.

        Raises:
            BackendError: the engine failed, or was opened before this process forked.
        """
        self.process.check()
        ids = np.asarray(tokens, np.int32)
        with GenaiFailures("onnxruntime-genai failed in the prompt"):
            self._generator.append_tokens(ids)
        self._read, self._has_unread = np.atleast_2d(ids).shape, False

    def step(self) -> int:
        """Read the last token if it was not yet, then choose and return the next.

        Raises:
            BackendError: as `append`.
        """
        return self.steps()[0]

    def steps(self) -> list[int]:
        """As `step`, of every row.

        Raises:
            BackendError: as `append`.
        """
        self.process.check()
        with _AT_A_TOKEN:
            self._generator.generate_next_token()
            tokens = [int(token) for token in self._generator.get_next_tokens()]
        if self._has_unread:
            self._read = self._read[0], 1
        self._has_unread = True
        return tokens

    def close(self) -> None:
        """Free the memory."""
        self._generator = None

    @property
    def is_done(self) -> bool:
        """Whether the last token ends the text, or there is no room for another."""
        return bool(self._generator.is_done())

    def output(self, name: str) -> FloatArray:
        """An output of the last forward pass, [rows, tokens of the pass, ...].

        Raises:
            BackendError: the graph has none of that name, or it is not of the tokens that were
                to be read, each of them.
        """
        values = self.output_of_pass(name)
        if values.shape[:2] != self._read:
            raise BackendError(
                f"the engine had {_counted(self._read)} to read, and its output {name!r} is of "
                f"{_counted(values.shape)}, so some have no verdict; it may read prompts in parts, "
                "or several sequences: see search in genai_config.json"
            )
        return values

    def output_of_pass(self, name: str) -> FloatArray:
        """An output of the last forward pass, whatever its shape.

        Raises:
            BackendError: the graph has none of that name.
        """
        with GenaiFailures(f"the graph gives no output {name!r}"):
            values: FloatArray = self._generator.get_output(name)
        return values


def _counted(shape: Sequence[int]) -> str:
    """The beginning of a shape, [rows, tokens, ...], in words."""
    return " x ".join(map(str, shape[:2])) + " tokens"


class Batch:
    """A run of several rows, which go on together: what one of them asks for, all of them get.

    Threads may have a row each.
    """

    def __init__(self, run: Run, prompts: npt.NDArray[np.int32], outputs: Sequence[str]) -> None:
        """Read the prompts, int32 [rows, tokens], padded behind.

        Raises:
            BackendError: the engine failed, or the graph lacks an output.
        """
        self._run, self._outputs, self._error = run, outputs, ""
        self._lock = threading.Lock()  # one thread at a time takes all rows a step further
        self._waiting: dict[int, deque[_Step]] = {row: deque() for row in range(len(prompts))}
        run.append(prompts)
        self.prompts = self._values()

    def take(self, row: int) -> "_Step":
        """The next step of a row; where it has none waiting, all rows go one further.

        Raises:
            BackendError: the engine failed, now or before, or this process forked meanwhile.
        """
        self._run.process.check()
        with self._lock:
            if self._error:
                raise BackendError(f"the batch failed before ({self._error})")
            if not self._waiting[row]:
                try:
                    self._step()
                except BaseException as error:  # a Control-C too: some rows may lack their token
                    self._error = str(error) or type(error).__name__
                    raise
            return self._waiting[row].popleft()

    def _step(self) -> None:
        """Go one further with all rows; those that have left are not kept."""
        tokens, values = self._run.steps(), self._values()
        for row, steps in self._waiting.copy().items():
            own = {name: rows[row : row + 1] for name, rows in values.items()}
            steps.append(_Step(tokens[row], own))

    def leave(self, row: int) -> None:
        """Keep nothing more for a row, and nothing at all once the last has left.

        It waits for no step: a signal's handler amid one may leave, and a child of a process that
        forked amid one.
        """
        self._waiting.pop(row, None)
        if not self._waiting:
            self._run.close()

    def _values(self) -> dict[str, FloatArray]:
        return {name: self._run.output(name) for name in self._outputs}


class RowRun:
    """A row of a batch, to be used as a `Run` of its own."""

    def __init__(self, batch: Batch, row: int, prompt: int) -> None:
        self._batch, self._row = batch, row
        self._prompt = {
            name: values[row : row + 1, :prompt] for name, values in batch.prompts.items()
        }
        self._read, self._current = 0, self._prompt

    def append(self, tokens: Sequence[int]) -> None:
        """Go on in the prompt, which was read with the others."""
        part = slice(self._read, self._read + len(tokens))
        self._current = {name: values[:, part] for name, values in self._prompt.items()}
        self._read += len(tokens)

    def step(self) -> int:
        """As `Run.step`.

        Raises:
            BackendError: the engine failed.
        """
        step = self._batch.take(self._row)
        self._current = step.values
        return step.token

    def output(self, name: str) -> FloatArray:
        """As `Run.output`, [1, tokens of the pass, ...]."""
        return self._current[name]

    def close(self) -> None:
        """Leave the batch; the other rows go on."""
        self._batch.leave(self._row)


@dataclass(frozen=True)
class _Step:
    """A token that was chosen, and what the pass before gave of its row, by output."""

    token: int
    values: dict[str, FloatArray]
