"""Explain a text: read it and a neutral one, and attribute the difference of a head's outputs.

The neutral text has as many tokens, so that what decoders put on the first token of every text
(massive activations, arXiv 2402.17762) stands in both, and cancels.
"""

import os
import threading
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from siren_runtime.backends.base import StreamBackend
from siren_runtime.backends.batching import right_pad
from siren_runtime.backends.by_stream import ScoreByStream
from siren_runtime.backends.onnxruntime.explain import HeadGradients
from siren_runtime.backends.outputs import DoubleArray, FloatArray, neurons_of_chunk
from siren_runtime.bundle.heads import HARMFUL
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.shipped import find_bundle
from siren_runtime.errors import BackendError, InputError, SirenError
from siren_runtime.text.deadline import Deadline
from siren_runtime.text.passage import Passage, Span, make_passage
from siren_runtime.text.reading import DEFAULT_MAX_BYTES, DEFAULT_MAX_TOKENS, Limits, Window
from siren_runtime.text.rules import JOINER
from siren_runtime.text.spans import span_of
from siren_runtime.text.tokenizer import Tokenizer

from .attribution import Attribution, attribute
from .engines import Engines, Request, open_backend, open_stream_backend
from .explanation import (
    Explanation,
    LayerShare,
    NeuronShare,
    PairShare,
    PartShare,
    strongest_run,
)
from .pairs import SecondOrder, strongest_pairs
from .scorer import Scorer, windows_of

NEUTRAL = "This is a sentence about nothing in particular."
_MOST_PARTS = 24  # of a text that are left out one by one


@dataclass(frozen=True)
class _Read:
    """What an engine makes of token ids: a head's features, its logits, and each token's share.

    `tokens` are float32 [tokens, n_features], whose mean the features are; None of an encoder.
    `row` is what `siren_runtime.backends.readout` reads of all heads.
    """

    features: FloatArray
    logits: FloatArray
    row: DoubleArray
    tokens: FloatArray | None


class Explainer:
    """Explains texts by one head of a bundle, on the CPU and without PyTorch."""

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        head: str | None = None,
        threads: int | None = None,
        neutral: str = NEUTRAL,
        max_tokens_per_text: int = DEFAULT_MAX_TOKENS,
        max_bytes_per_text: int = DEFAULT_MAX_BYTES,
    ) -> None:
        """Open the bundle that `source` names, as `Guard.load` finds it; ensembles are not taken.

        Args:
            head: its name; None is the primary one.
            threads: of the CPU; None leaves it to ONNX Runtime.
            neutral: the text that others are compared with, repeated and cut to their length.
            max_tokens_per_text, max_bytes_per_text: as `Guard.load`.

        Raises:
            InputError: a bound is no whole number above 0.
            BundleError: the bundle is damaged, has no such head, or no graph to explain it by.
            BackendError: ONNX Runtime cannot run it.
        """
        self._limits = Limits(
            max_tokens=max_tokens_per_text, max_bytes=max_bytes_per_text, spans=()
        )
        bundle = load_bundle(find_bundle(source))
        self.manifest: Manifest = bundle.manifest
        self.head = self.manifest.primary if head is None else head
        self._decision = self.manifest.decision(self.head)
        self._spec = self.manifest.heads[self.head]
        self._place = list(self.manifest.heads).index(self.head)
        self._gradients = HeadGradients(bundle, self.head, threads)
        request = Request("cpu", threads)
        self._stream: StreamBackend | None = None
        if self.manifest.streams and self._spec.pools_mean:
            stream = self._stream = open_stream_backend(bundle, request)
            self._scorer = Scorer(bundle, Engines(None, lambda: stream))
        else:
            self._scorer = Scorer(bundle, Engines(open_backend(bundle, request)))
        self._neutral = neutral

    def explain(
        self,
        text: str | None = None,
        *,
        prompt: str | None = None,
        response: str | None = None,
        category: str | None = None,
        neurons: int = 20,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> Explanation:
        """Explain a text, or a prompt and its response; of a long one the window that counts.

        Args:
            category: of the head; None is harm, or of a head of labels the likeliest.
            neurons: how many of the strongest to name, and pairs of a polynomial head.
            deadline, cancel: as `Guard.score`; looked at before each run of an engine.

        Raises:
            InputError: the text cannot be scored, or the head has no such category.
            InterruptedCall: the deadline passed, or the call was cancelled.
            BackendError: the engine failed, or what the features or pairs get does not add up.
        """
        limits, until = self._limits, Deadline(deadline, cancel)
        passage = make_passage(text, prompt, response, max_bytes=limits.max_bytes)
        window = self._window(passage, limits, until, self._column(category))
        tokenizer = self._scorer.tokenizer
        shown = _shown(tokenizer, passage, window)
        if not shown.ids:
            raise InputError("the text has no token, so there is nothing to explain")
        until.check("before the text was read for its features")
        read = self._read(tokenizer.with_special(shown.ids))
        until.check("before the neutral text was read")
        neutral = self._read(tokenizer.with_special(self._neutral_ids(len(shown.ids))))
        name, direction, temperature = self._direction(read.logits, category)

        def gradients(features: FloatArray) -> tuple[np.ndarray, np.ndarray]:
            until.check("before the gradients of the head were there")
            values, found = self._gradients(features, direction)
            return values / temperature, found / temperature

        found = attribute(gradients, read.features, neutral.features)
        terms = self._terms(read, neutral)
        pairs = self._pairs(read, neutral, terms, neurons, until)
        if read.tokens is not None and neutral.tokens is not None:
            parts = _tokens(tokenizer, shown, read.tokens, neutral.tokens, found)
        else:
            until.check("before parts of the text were left out")
            parts = self._omissions(shown, direction / temperature)
        return Explanation(
            head=self.head,
            category=name,
            score=float(read.row[self._column(name or None)]),
            log_odds=found.output,
            baseline=found.baseline,
            residual=found.residual,
            steps=found.steps,
            text=shown.text,
            span=None if window.span is None else passage.span_in_given(window.span),
            parts_by="omission" if read.tokens is None else "attribution",
            parts=parts,
            strongest=strongest_run(parts, shown.text),
            layers=self._layers(found),
            neurons=self._strongest(found, read, neutral, neurons),
            terms=terms,
            pairs=pairs,
        )

    def _column(self, category: str | None) -> int:
        """Where a row of the readout has the probability that is explained."""
        column, names = self._scorer.readout.columns[self.head], self._spec.categories
        if category is None:
            return column.score
        if category not in names:
            raise InputError(
                f"the head {self.head!r} has no category {category!r}; it has "
                f"{', '.join(names) or 'none beside harm'}"
            )
        return int(column.rest.start) + names.index(category)

    def _window(self, passage: Passage, limits: Limits, deadline: Deadline, column: int) -> Window:
        """What is read of a text; of a long one, the window where a column is the highest."""
        (reading,) = self._scorer.encode([passage], limits, deadline)
        if isinstance(reading, SirenError):
            raise reading
        if len(reading.windows) == 1:
            return reading.windows[0]
        scores = []
        for one in self._scorer.run(windows_of([reading]), check=deadline.check).values():
            if isinstance(one, BackendError):
                raise one
            scores.append(one.row[column])
        return reading.windows[int(np.argmax(scores))]

    def _neutral_ids(self, count: int) -> list[int]:
        (ids,) = self._scorer.tokenizer.encode_plain([f"{self._neutral} " * (count + 1)])
        if len(ids) < count:
            raise InputError(f"the tokenizer makes too few tokens of the neutral {self._neutral!r}")
        return ids[:count]

    def _read(self, ids: list[int]) -> _Read:
        if self._stream is None:
            outputs = self._scorer.backend.run(*right_pad([ids]))
            head, row = outputs.heads[self._place], self._scorer.readout.precise(outputs)[0]
            assert head.features is not None
            return _Read(head.features[0], head.logits[0], row, None)
        sums = ScoreByStream(self._stream).sums(np.array([ids], np.int64))[0]
        known = self._gradients.neurons
        tokens = neurons_of_chunk(sums, self._spec)[:, known.places] * known.weights
        outputs = self._stream.head((sums[-1:] / len(ids)).astype(np.float32))
        features = (sums[-1] / len(ids))[known.places] * known.weights
        logits, row = outputs.heads[self._place].logits[0], self._scorer.readout.precise(outputs)[0]
        return _Read(features.astype(np.float32), logits, row, tokens)

    def _direction(self, logits: FloatArray, category: str | None) -> tuple[str, FloatArray, float]:
        """The category that is explained, the factor of each logit, and its temperature.

        A label's log-odds are its logit. Of classes it is the logit of one less that of the
        likeliest other, which of two classes is the log-odds.
        """
        names = self._spec.categories
        if self._spec.activation in ("orders", "logistic"):
            return "", self._gradients.one_hot(self._spec.classes - 1), self._decision.temperature
        if self._spec.has_labels:
            temperatures = [label.temperature for label in self._decision.labels] or [1.0] * len(
                names
            )
            likeliest = int((logits / temperatures).argmax())
            place = likeliest if category is None else names.index(category)
            return names[place], self._gradients.one_hot(place), temperatures[place]
        place = HARMFUL if category is None else names.index(category)
        others = np.where(np.arange(len(logits)) == place, -np.inf, logits)
        direction = self._gradients.one_hot(place) - self._gradients.one_hot(int(others.argmax()))
        return category or "", direction, self._decision.temperature

    def _omissions(self, shown: "_Shown", direction: FloatArray) -> tuple[PartShare, ...]:
        """Parts of a text, each with what its omission takes from the output."""
        ids = shown.ids
        bounds = np.linspace(0, len(ids), min(_MOST_PARTS, len(ids)) + 1).astype(int).tolist()
        without = [ids[:start] + ids[stop:] for start, stop in pairwise(bounds)]
        rows = [self._scorer.tokenizer.with_special(row) for row in [ids, *without] if row]
        outputs = self._scorer.backend.run(*right_pad(rows)).heads[self._place].logits @ direction
        shares = (outputs[0] - outputs[1:]).tolist() or [0.0]
        parts = []
        for (start, stop), share in zip(pairwise(bounds), shares, strict=True):
            span = shown.places[start][0], shown.places[stop - 1][1]
            parts.append(PartShare(shown.text[slice(*span)], span, share))
        return tuple(parts)

    def _layers(self, found: Attribution) -> tuple[LayerShare, ...]:
        known = self._gradients.neurons
        shares = []
        for block in np.unique(known.blocks).tolist():
            own = known.blocks == block
            weight, share = float(known.weights[own][0]), float(found.shares[own].sum())
            shares.append(LayerShare(block, weight, int(own.sum()), share))
        return tuple(shares)

    def _terms(self, read: _Read, neutral: _Read) -> tuple[float, ...]:
        """What the term of each order of a polynomial moved; none of other heads."""
        both = np.stack([read.features, neutral.features])
        logits = [
            self._gradients(both, self._gradients.one_hot(n))[0] for n in range(self._spec.orders)
        ]
        moved = [float(text - other) / self._decision.temperature for text, other in logits]
        return (*np.diff(moved, prepend=0.0).tolist(),) if moved else ()

    def _pairs(
        self,
        read: _Read,
        neutral: _Read,
        terms: tuple[float, ...],
        count: int,
        deadline: Deadline,
    ) -> tuple[PairShare, ...]:
        if not self._spec.rank:
            return ()
        deadline.check("before pairs of neurons were there")
        both = np.stack([read.features, neutral.features])
        standardized, factors, directions = (
            part.astype(np.float64) for part in self._gradients.second_order(both)
        )
        tempered = factors / self._decision.temperature
        found = strongest_pairs(SecondOrder(tempered, directions, *standardized), terms[1], count)
        known = self._gradients.neurons
        blocks, channels = known.blocks.tolist(), known.channels.tolist()
        return tuple(
            PairShare((blocks[i], blocks[j]), (channels[i], channels[j]), share)
            for i, j, share in found
        )

    def _strongest(
        self, found: Attribution, read: _Read, neutral: _Read, count: int
    ) -> tuple[NeuronShare, ...]:
        known = self._gradients.neurons
        order = np.argsort(-np.abs(found.shares), kind="stable")[:count].tolist()
        return tuple(
            NeuronShare(
                int(known.blocks[i]),
                int(known.channels[i]),
                float(read.features[i]),
                float(neutral.features[i]),
                float(found.shares[i]),
            )
            for i in order
        )


@dataclass(frozen=True)
class _Shown:
    """The text that is explained, its token ids without special ones, and where each stands."""

    text: str
    ids: list[int]
    places: list[Span]


def _shown(tokenizer: Tokenizer, passage: Passage, window: Window) -> _Shown:
    """What a window holds of a text: all of it, or a part, which may stand behind the prompt's end,
    on a line of its own.
    """
    encoded = tokenizer.encode(passage.cleaned, special=False)
    if window.span is None:
        return _Shown(passage.cleaned, encoded.ids, encoded.offsets)
    texts: list[str] = []
    ids: list[int] = []
    places: list[Span] = []
    begins = 0
    for start, stop in window.taken:
        first, last = span_of(encoded, start, stop)
        ids += encoded.ids[start:stop]
        places += [(a - first + begins, b - first + begins) for a, b in encoded.offsets[start:stop]]
        texts.append(passage.cleaned[first:last])
        begins += last - first + len(JOINER)
    return _Shown(JOINER.join(texts), ids, places)


def _tokens(
    tokenizer: Tokenizer,
    shown: _Shown,
    tokens: FloatArray,
    neutral: FloatArray,
    found: Attribution,
) -> tuple[PartShare, ...]:
    """Each token's part of the features' shares: the features are the mean of the tokens'."""
    shares = ((tokens - neutral).astype(np.float64) @ found.gradient / len(tokens)).tolist()
    places = [(0, 0)] * tokenizer.special_before + shown.places
    places += [(0, 0)] * (len(shares) - len(places))
    return tuple(
        PartShare(shown.text[slice(*span)], span, share)
        for span, share in zip(places, shares, strict=True)
    )
