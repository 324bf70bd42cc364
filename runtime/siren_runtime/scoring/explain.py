"""Explain a text: read it and a neutral one, and attribute the difference of a head's outputs.

The neutral text has as many tokens, so that what decoders put on the first token of every text
(massive activations, arXiv 2402.17762) stands in both, and cancels.
"""

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from siren_runtime.backends.base import StreamBackend
from siren_runtime.backends.batching import right_pad
from siren_runtime.backends.by_stream import ScoreByStream
from siren_runtime.backends.onnxruntime.explain import HeadGradients
from siren_runtime.backends.outputs import (
    DoubleArray,
    FloatArray,
    neurons_of_chunk,
    span_means,
)
from siren_runtime.bundle.heads import HARMFUL
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.shipped import find_bundle
from siren_runtime.errors import InputError
from siren_runtime.text.deadline import Deadline
from siren_runtime.text.passage import make_passage
from siren_runtime.text.reading import DEFAULT_MAX_BYTES, DEFAULT_MAX_TOKENS, Limits
from siren_runtime.text.spans import Cut

from .attribution import Attribution, attribute
from .engines import Engines, Request, open_backend, open_stream_backend
from .explained import Shown, column_of, explained, judge_for, shown
from .explanation import (
    Explanation,
    LayerShare,
    NeuronShare,
    PairShare,
    PartShare,
    strongest_run,
)
from .pairs import SecondOrder, strongest_pairs
from .scorer import Scorer

NEUTRAL = "This is a sentence about nothing in particular."
_MOST_PARTS = 24  # of a text that are left out one by one


@dataclass(frozen=True)
class _Read:
    """What an engine makes of token ids: a head's features, its logits, and each token's share.

    `tokens` are float32 [tokens, n_features], whose mean the features are; of a span the text's
    first token stands before them. None of an encoder.
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
        spans: bool | Iterable[int] | None = None,
        max_tokens_per_text: int = DEFAULT_MAX_TOKENS,
        max_bytes_per_text: int = DEFAULT_MAX_BYTES,
    ) -> None:
        """Open the bundle that `source` names, as `Guard.load` finds it; ensembles are not taken.

        Args:
            head: its name; None is the primary one.
            threads: of the CPU; None leaves it to ONNX Runtime.
            neutral: the text that others are compared with, repeated and cut to their length.
            spans: as `Guard.load`; where one decides, it is what is explained.
            max_tokens_per_text, max_bytes_per_text: as `Guard.load`.

        Raises:
            InputError: a bound is no whole number above 0, or `spans` are no sizes.
            BundleError: the bundle is damaged, has no such head, or no graph to explain it by.
            BackendError: ONNX Runtime cannot run it.
        """
        limits = Limits(max_tokens=max_tokens_per_text, max_bytes=max_bytes_per_text)
        bundle = load_bundle(find_bundle(source))
        self.manifest: Manifest = bundle.manifest
        self.head = self.manifest.primary if head is None else head
        self._decision = self.manifest.decision(self.head)
        self._spec = self.manifest.heads[self.head]
        self._place = list(self.manifest.heads).index(self.head)
        self._judge = judge_for(self.manifest, limits, spans)
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
        """Explain a text, or a prompt and its response: of a long one the window that its score is
        of; where a span decides, that span.

        Args:
            category: of the head; None is harm, or of a head of labels the likeliest.
            neurons: how many of the strongest to name, and pairs of a polynomial head.
            deadline, cancel: as `Guard.score`; looked at before each run of an engine.

        Raises:
            InputError: the text cannot be scored, or the head has no such category.
            InterruptedCall: the deadline passed, or the call was cancelled.
            BackendError: the engine failed, or what the features or pairs get does not add up.
        """
        judge, until = self._judge, Deadline(deadline, cancel)
        passage = make_passage(text, prompt, response, max_bytes=judge.limits.max_bytes)
        found = explained(self._scorer, judge, self.head, passage, category, until)
        tokenizer, cut = self._scorer.tokenizer, found.cut
        before = tokenizer.special_before
        whole = part = shown(tokenizer, passage, found.window)
        if not whole.ids:
            raise InputError("the text has no token, so there is nothing to explain")
        if cut is not None:
            part = whole.part(cut.start - before, cut.stop - before)
        # Of a decoder a span is read with its window, elsewhere by itself, as guards read it.
        ids, of_it = (part.ids, None) if self._stream is None else (whole.ids, cut)
        until.check("before the text was read for its features")
        read = self._read(tokenizer.with_special(ids), of_it)
        until.check("before the neutral text was read")
        neutral = self._read(tokenizer.with_special(self._neutral_ids(len(ids))), of_it)
        name, direction, temperature = self._direction(read.logits, found.category)

        def gradients(features: FloatArray) -> tuple[np.ndarray, np.ndarray]:
            until.check("before the gradients of the head were there")
            values, found = self._gradients(features, direction)
            return values / temperature, found / temperature

        moved = attribute(gradients, read.features, neutral.features)
        terms = self._terms(read, neutral)
        pairs = self._pairs(read, neutral, terms, neurons, until)
        if read.tokens is not None and neutral.tokens is not None:
            first = before if cut is None else int(cut.start > 0)
            parts = _tokens(first, part, read.tokens, neutral.tokens, moved)
        else:
            until.check("before parts of the text were left out")
            parts = self._omissions(part, direction / temperature)
        span = found.window.span if cut is None else cut.span
        return Explanation(
            head=self.head,
            category=name,
            score=float(read.row[column_of(self._scorer, self.head, name or None)]),
            is_harmful=found.verdict.is_harmful,
            unknown=found.unknown,
            log_odds=moved.output,
            baseline=moved.baseline,
            residual=moved.residual,
            steps=moved.steps,
            text=part.text,
            span=None if span is None else passage.span_in_given(span),
            size=None if cut is None else cut.size,
            parts_by="omission" if read.tokens is None else "attribution",
            parts=parts,
            strongest=strongest_run(parts, part.text),
            layers=self._layers(moved),
            neurons=self._strongest(moved, read, neutral, neurons),
            terms=terms,
            pairs=pairs,
        )

    def _neutral_ids(self, count: int) -> list[int]:
        (ids,) = self._scorer.tokenizer.encode_plain([f"{self._neutral} " * (count + 1)])
        if len(ids) < count:
            raise InputError(f"the tokenizer makes too few tokens of the neutral {self._neutral!r}")
        return ids[:count]

    def _read(self, ids: list[int], cut: Cut | None) -> _Read:
        """Read token ids; of a decoder all of them, or a span among them."""
        if self._stream is None:
            outputs = self._scorer.backend.run(*right_pad([ids]))
            head, row = outputs.heads[self._place], self._scorer.readout.precise(outputs)[0]
            assert head.features is not None
            return _Read(head.features[0], head.logits[0], row, None)
        start, stop = (0, len(ids)) if cut is None else (cut.start, cut.stop)
        sums = ScoreByStream(self._stream).sums(np.array([ids], np.int64))[0]
        pooled = span_means(
            np.array([start]),
            np.array([stop]),
            before=sums[start - 1 : start] if start else np.zeros_like(sums[:1]),
            last=sums[stop - 1 : stop],
            first=sums[0],
        )
        known, counted = self._gradients.neurons, [*range(min(start, 1)), *range(start, stop)]
        tokens = neurons_of_chunk(sums, self._spec)[counted][:, known.places] * known.weights
        outputs = self._stream.head(pooled)
        features = pooled[0][known.places] * known.weights
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

    def _omissions(self, part: Shown, direction: FloatArray) -> tuple[PartShare, ...]:
        """Parts of a text, each with what its omission takes from the output."""
        ids = part.ids
        bounds = np.linspace(0, len(ids), min(_MOST_PARTS, len(ids)) + 1).astype(int).tolist()
        without = [ids[:start] + ids[stop:] for start, stop in pairwise(bounds)]
        rows = [self._scorer.tokenizer.with_special(row) for row in [ids, *without] if row]
        outputs = self._scorer.backend.run(*right_pad(rows)).heads[self._place].logits @ direction
        shares = (outputs[0] - outputs[1:]).tolist() or [0.0]
        parts = []
        for (start, stop), share in zip(pairwise(bounds), shares, strict=True):
            span = part.places[start][0], part.places[stop - 1][1]
            parts.append(PartShare(part.text[slice(*span)], span, share))
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


def _tokens(
    before: int,
    part: Shown,
    tokens: FloatArray,
    neutral: FloatArray,
    found: Attribution,
) -> tuple[PartShare, ...]:
    """Each token's part of the features' shares: the features are the mean of the tokens'.

    Args:
        before: how many tokens stand before those of the part.
    """
    shares = ((tokens - neutral).astype(np.float64) @ found.gradient / len(tokens)).tolist()
    places = [(0, 0)] * before + part.places
    places += [(0, 0)] * (len(shares) - len(places))
    return tuple(
        PartShare(part.text[slice(*span)], span, share)
        for span, share in zip(places, shares, strict=True)
    )
