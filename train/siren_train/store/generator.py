"""A generator whose own engine pools: what it reads of a row, and its neurons' means."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np

from siren_export.graft.extractor import MEANS, engine_precision, write_extractor
from siren_export.heads.selected import MeanPooling
from siren_runtime.backends.outputs import FloatArray
from siren_runtime.bundle.heads import Pooling
from siren_runtime.bundle.types import Precision
from siren_runtime.errors import BackendError, CheckpointError, InputError
from siren_runtime.generation.engine import Engine, Run
from siren_runtime.generation.folder import CONFIG_FILE, GenaiFolder, read_folder
from siren_runtime.generation.manifest import TextForm, TrainedOn
from siren_train.data.rows import Row


@dataclass(frozen=True)
class Generator:
    """A model folder of onnxruntime-genai.

    Attributes:
        folder: what it holds.
        text: whether texts stand in the model's chat template, as the one message of a user, whose
            response, where the row has one, follows.
    """

    folder: GenaiFolder
    text: TextForm

    def trained_on(self) -> TrainedOn:
        """What heads will say that they were trained on."""
        return TrainedOn(
            engine=self.folder.digest(), text=self.text, tokenizer=self.folder.tokenizer_digest()
        )

    def write_extractor(self, output: Path, pooling: Pooling) -> str:
        """Write what pools its states to `output`.

        Returns:
            The SHA-256 that names that engine, in hexadecimal.

        Raises:
            CheckpointError, BundleError: as `siren_export.graft.extractor.write_extractor`.
        """
        mean: MeanPooling = "mlp_mean" if pooling == "mlp_mean" else "residual_mean"
        write_extractor(self.folder, output, mean)
        return read_folder(output).digest()

    @property
    def precision(self) -> Precision:
        """Of the engine's matrix products."""
        return engine_precision(self.folder)


def is_generator(folder: str) -> bool:
    """Whether a folder is one of onnxruntime-genai."""
    return (Path(folder) / CONFIG_FILE).is_file()


def open_generator(folder: str, text: TextForm) -> Generator:
    """Read a model folder.

    Raises:
        CheckpointError: it is damaged.
    """
    return Generator(read_folder(Path(folder).absolute(), CheckpointError), text)


class GeneratorPool:
    """The generator's extractor, open."""

    def __init__(
        self,
        generator: Generator,
        extractor: Path,
        max_length: int,
        threads: int | None,
    ) -> None:
        """Open the extractor that `Generator.write_extractor` wrote.

        Args:
            max_length: tokens that are read of a row, chat markup included; the rest is cut.

        Raises:
            BundleError, BackendError: it cannot be opened.
        """
        self._engine = Engine(extractor, threads=threads)
        self._text, self._logits = generator.text, generator.folder.logits
        self._read_whole = 1  # tokens of the longest pass that is known to have been one
        self._max_length = min(max_length, generator.folder.context_length - 1)

    def pool(self, rows: Sequence[Row]) -> list[FloatArray]:
        """The means of a row's states over its tokens, float32 [layers * channels] each.

        Of a row behind other text they are those of a span: from where that text ends, and of the
        first token of all.

        Raises:
            InputError: the tokenizer makes no token of a row, or the chat template refuses it.
            BackendError: the engine failed.
        """
        return [self._means(row) for row in rows]

    def _means(self, row: Row) -> FloatArray:
        try:
            text = self._in_place(row)
            tokens = self._engine.encode(text)
            markup, first = self._places(row, text, tokens) if row.skipped else (0, 0)
        except InputError as error:
            raise InputError(f"{row.origin}: {error}") from None
        dropped = min(max(len(tokens) - self._max_length, 0), first - markup)
        tokens = (tokens[:markup] + tokens[markup + dropped :])[: self._max_length]
        first -= dropped
        if len(tokens) <= first:
            raise InputError(f"{row.origin}: the tokenizer makes no token of the text")
        run = self._engine.run(len(tokens) + 1, {})
        cuts = sorted({0, min(first, 1), first, len(tokens)})
        passes = [tokens[start:stop] for start, stop in pairwise(cuts)]
        means = [self._means_of_pass(run, part) for part in passes]
        if not first:
            return means[0]
        counted = np.float32(len(passes[-1]))
        mean: FloatArray = (means[0] + means[-1] * counted) / (counted + 1)
        return mean

    def _places(self, row: Row, text: str, tokens: Sequence[int]) -> tuple[int, int]:
        """The token at which a row's text begins in a conversation, and the first that counts.

        Where there are too many tokens, those between lose their beginning, then the row its end.
        """
        begin = text.find(row.text)
        if begin < 0:
            raise InputError("the chat template changes the text, of which a part was to be read")
        before = [self._engine.encode(text[:end]) for end in (begin, begin + row.skipped)]
        markup, first = (len(_beginning(tokens, ids)) for ids in before)
        return markup, first

    def _means_of_pass(self, run: Run, tokens: Sequence[int]) -> FloatArray:
        run.append(tokens)
        if len(tokens) > self._read_whole:
            self._check_whole(run, len(tokens))
        means: FloatArray = run.output_of_pass(MEANS)[0, 0]
        return means

    def _check_whole(self, run: Run, tokens: int) -> None:
        """See that the engine read a pass at once: of one in parts the last alone leaves its means.

        What it reads at once it reads so with fewer tokens, so that the logits, which are large,
        are fetched seldom. They may be those of the last token alone, as the builder prunes them.
        """
        read = run.output_of_pass(self._logits).shape[1]
        if read not in (1, tokens):
            raise BackendError(
                f"{self._engine.folder}: the engine read {tokens} tokens in parts, the last of "
                f"{read}, and gives the means of that alone; see search in genai_config.json"
            )
        self._read_whole = tokens

    def _in_place(self, row: Row) -> str:
        """A row's text as it stands in a conversation."""
        if self._text == "plain":
            return row.text
        prompt, *response = row.turns or (row.text,)
        return self._engine.chat([{"role": "user", "content": prompt}]) + "".join(response)


def _beginning(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """What two sequences begin with."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return [number for number, _ in pairs]
