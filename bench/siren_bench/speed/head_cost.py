"""What further heads cost: guards of one head and of several on the same pass, timed in turns."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from siren_bench.records.record import markdown_table
from siren_bench.records.samples import paired_ratio, spread, timed_in_turns
from siren_export.export import export_bundle
from siren_export.heads.base import Artifact
from siren_export.heads.mlp import Dense, MlpHead
from siren_export.heads.polynomial import PolynomialHead, Term
from siren_export.heads.selected import LayerSelection
from siren_export.heads.together import together
from siren_export.sources.checkpoint import Checkpoint
from siren_runtime import Guard
from siren_runtime.bundle.heads import Activation, Decision
from siren_runtime.bundle.manifest import MANIFEST_FILE
from siren_runtime.bundle.progress import Progress
from siren_runtime.bundle.types import Precision
from siren_runtime.text.reading import AS_LLM_SIREN

_FEW_LABELS = 8
_ORDERS, _RANK = 3, 32  # of a polynomial, as siren train makes one
_PREFIX_TOKENS = 128  # of the stream whose next token is timed


@dataclass(frozen=True)
class Kind:
    """A kind of MLP: its hidden layers, None for those of the first head, and its end."""

    hidden: tuple[int, ...] | None
    classes: int
    activation: Activation


_MLPS = {
    "linear": Kind((), 2, "softmax"),
    "labels": Kind((128, 32), _FEW_LABELS, "sigmoid"),
    "forecast": Kind((), 1, "logistic"),
    "same": Kind(None, 2, "softmax"),
}
_POLYNOMIAL = "polynomial"
KINDS = (*_MLPS, _POLYNOMIAL)


def with_further(artifact: Artifact, kind: str, count: int) -> Artifact:
    """The head with `count` - 1 random ones of a kind, on as many channels of the same layers."""
    assert isinstance(artifact.head, MlpHead)
    heads = {artifact.name: artifact}
    for number in range(1, count):
        rng = np.random.default_rng(number)
        head = (
            _polynomial(artifact.head, rng)
            if kind == _POLYNOMIAL
            else _mlp(artifact.head, _MLPS[kind], rng)
        )
        heads[f"{kind}-{number}"] = replace(artifact, head=head, decision=Decision(0.5))
    return together(heads)


def _mlp(like: MlpHead, kind: Kind, rng: np.random.Generator) -> MlpHead:
    hidden = [len(layer.bias) for layer in like.dense[:-1]] if kind.hidden is None else kind.hidden
    dense, inputs = [], like.n_features
    for width in (*hidden, kind.classes):
        weight = rng.standard_normal((width, inputs), dtype=np.float32) * np.float32(inputs**-0.5)
        dense.append(Dense(weight, np.zeros(width, np.float32)))
        inputs = width
    labels = tuple(f"label {n}" for n in range(kind.classes) if kind.activation == "sigmoid")
    return MlpHead(like.pooling, _layers(like, rng), tuple(dense), labels, kind.activation)


def _polynomial(like: MlpHead, rng: np.random.Generator) -> PolynomialHead:
    features = like.n_features
    one = np.ones(features, np.float32)

    def term() -> Term:
        directions = rng.standard_normal((_RANK, features), dtype=np.float32)
        return Term(np.ones(_RANK, np.float32), directions / np.float32(features))

    terms = tuple(term() for _ in range(2, _ORDERS + 1))
    return PolynomialHead(like.pooling, _layers(like, rng), 0 * one, one, one, 0.0, terms)


def _layers(like: MlpHead, rng: np.random.Generator) -> tuple[LayerSelection, ...]:
    return tuple(
        LayerSelection(one.layer, _drawn(rng, one.channels), one.weight) for one in like.layers
    )


def _drawn(rng: np.random.Generator, channels: np.ndarray) -> np.ndarray:
    """As many channels of the same range, half of them others."""
    everything = rng.permutation(int(channels.max()) + 1)
    kept = channels[: channels.size // 2]
    others = everything[~np.isin(everything, kept)][: channels.size - kept.size]
    return np.concatenate([kept, others]).astype(np.int64)


@dataclass(frozen=True)
class HeadBench:
    """Guards of one head and of several, exported once into a folder."""

    artifact: Artifact
    checkpoint: Checkpoint
    folder: Path
    precision: Precision
    threads: int

    def guard(self, kind: str, count: int) -> Guard:
        """Load the guard of so many heads, exported the first time."""
        path = self.folder / f"heads-{self.precision}-{kind}-{count}"
        if not (path / MANIFEST_FILE).exists():
            export_bundle(
                with_further(self.artifact, kind, count),
                self.checkpoint,
                path,
                precision=self.precision,
            )
        # Spans would be passes of their own.
        return Guard.load(path, threads=self.threads, streaming=True, **AS_LLM_SIREN)

    def measure(
        self,
        kinds: Sequence[str],
        counts: Sequence[int],
        texts: Mapping[int, str],
        rounds: int,
        progress: Progress,
    ) -> list[dict[str, Any]]:
        """Time each kind and count beside one head, in turns, texts by tokens and a stream."""
        results: list[dict[str, Any]] = []
        pairs = [(kind, count) for kind in kinds for count in counts if count > 1]
        for done, (kind, count) in enumerate(pairs, start=1):
            with self.guard(kind, 1) as one, self.guard(kind, count) as several:
                guards = (one, several)
                for tokens, text in texts.items():
                    runs = [partial(guard.score, text) for guard in guards]
                    samples = timed_in_turns(runs, rounds)
                    results.append(_result(kind, count, f"{tokens} tokens", samples))
                if one.manifest.streams:
                    text = max(texts.values(), key=len)
                    with ExitStack() as stack:
                        steps = [_stream_step(guard, text, stack) for guard in guards]
                        samples = timed_in_turns(steps, rounds)
                    results.append(_result(kind, count, "one new token of a stream", samples))
                results[-1]["parameters"] = _parameters(self.artifact, kind, count)
            progress("timing", done, len(pairs))
        return results


def _parameters(artifact: Artifact, kind: str, count: int) -> int:
    """Of the further heads together."""
    further = with_further(artifact, kind, count).further
    return sum(other.head.parameters for other in further.values())


def _stream_step(guard: Guard, text: str, stack: ExitStack) -> Callable[[], object]:
    """What feeds one more token to a stream, which `stack` ends, behind a prefix of the text."""
    ids = guard.scorers[0].tokenizer.encode_batch([text])[0]
    stream = stack.enter_context(guard.stream())
    stream.feed_tokens(ids[:_PREFIX_TOKENS])
    further = cycle(ids)
    return lambda: stream.feed_tokens([next(further)])


def _result(kind: str, count: int, what: str, samples: Sequence[list[float]]) -> dict[str, Any]:
    one, several = samples
    return {
        "kind": kind,
        "heads": count,
        "what": what,
        "one_ms": one,
        "several_ms": several,
        "ratio": paired_ratio(several, one),
    }


def head_cost_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the medians as Markdown: of one head, of several, and a further head's share.

    Of ratios the 10th to 90th percentile too.
    """
    rows = []
    for result in results:
        one, several = result["one_ms"], result["several_ms"]
        rows.append(
            [
                result["kind"],
                str(result["heads"]),
                result["what"],
                f"{statistics.median(one):,.2f}",
                f"{statistics.median(several):,.2f}",
                spread([b / a for a, b in zip(one, several, strict=True)], digits=3),
                f"{(result['ratio'] - 1) / (result['heads'] - 1):.2%}",
            ]
        )
    header = [
        "further heads", "heads", "read", "one head, ms", "all heads, ms", "all / one",
        "a further head's share of the pass",
    ]  # fmt: skip
    return markdown_table(header, rows)
