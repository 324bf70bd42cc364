"""A backbone's extractor, open: what it pools of rows, or of the end of those behind other text."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from siren_runtime import Guard
from siren_runtime.backends.batching import micro_batches, right_pad
from siren_runtime.backends.by_stream import ScoreByStream
from siren_runtime.backends.outputs import FloatArray
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_train.data.rows import Row


class GuardPool:
    """Pools rows by an extractor, whose head's features are all neurons.

    Whole rows go through score.onnx, whatever else is pooled, and ends of rows through stream.onnx,
    which is opened when the first comes. An extractor that has none, of an encoder or an ONNX file,
    reads ends as texts of their own, as its guard reads spans.
    """

    def __init__(self, extractor: Path, threads: int | None) -> None:
        """Open the extractor.

        Raises:
            BundleError, BackendError: as `Guard.load`.
        """
        self._load = partial(Guard.load, extractor, backend="cpu", threads=threads, **AS_LLM_SIREN)
        self._of_texts = self._load()
        self._of_ends: Guard | None = None

    def close(self) -> None:
        """Free the engines."""
        for guard in (self._of_texts, self._of_ends):
            if guard is not None:
                guard.close()

    def pool(self, rows: Sequence[Row]) -> list[FloatArray]:
        """The means of a row's neurons over its tokens, float32 [layers * channels] each.

        Of a row behind other text they are those of a span from where that text ends: of one that
        is read amid it (`ScoreByStream.run_spans`), or by itself.

        Raises:
            SirenError: as `Guard.score_batch`.
        """
        streams = self._of_texts.scorers[0].manifest.streams
        behind = [place for place, row in enumerate(rows) if row.skipped and streams]
        found: dict[int, FloatArray] = {}
        if behind:
            means = self._means_of_ends([rows[place] for place in behind])
            found = dict(zip(behind, means, strict=True))
        alone = [row.text[row.skipped :] for n, row in enumerate(rows) if n not in found]
        results = iter(self._of_texts.score_batch(alone, features=True) if alone else ())
        return [
            found[place] if place in found else np.asarray(next(results).features)
            for place in range(len(rows))
        ]

    def _means_of_ends(self, rows: Sequence[Row]) -> list[FloatArray]:
        self._of_ends = self._of_ends or self._load()
        stream = self._of_ends.scorers[0].stream_backend
        assert stream is not None
        backend, tokens = ScoreByStream(stream), [self._tokens(row) for row in rows]
        means: dict[int, FloatArray] = {}
        for batch in micro_batches([len(ids) for ids, _ in tokens], backend.token_budget):
            spans = [(n, tokens[place][1], len(tokens[place][0])) for n, place in enumerate(batch)]
            padded = right_pad([tokens[place][0] for place in batch])
            _, outputs = backend.run_spans(*padded, spans)
            means |= zip(batch, outputs.features, strict=True)
        return [means[place] for place in range(len(rows))]

    def _tokens(self, row: Row) -> tuple[list[int], int]:
        """What is read of a row, and its first token that counts.

        Where it has too many tokens, the text before loses its beginning, and then the row its end.
        """
        tokenizer = self._of_texts.scorers[0].tokenizer
        encoded = tokenizer.encode(row.text, special=False)
        first = sum(end <= row.skipped for _, end in encoded.offsets)
        dropped = min(max(len(encoded.ids) - tokenizer.room, 0), first)
        ids = encoded.ids[dropped:][: tokenizer.room]
        return tokenizer.with_special(ids), tokenizer.special_before + first - dropped
