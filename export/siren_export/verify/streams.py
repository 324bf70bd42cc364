"""Compare a bundle's streaming graph, fed in chunks, with its whole-sequence graph."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, cycle, pairwise, takewhile

import msgspec

from siren_export.passes.table import Bound
from siren_runtime.backends.verdicts import HeadScore
from siren_runtime.bundle.graphs import STREAM_HEAD
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.reader import Bundle
from siren_runtime.bundle.report import Verification
from siren_runtime.text.rules import clean
from siren_runtime.text.tokenizer import Tokenizer

from .opened import open_unpublished
from .texts import STREAM_TEXTS
from .trajectories import TRAJECTORIES

_CHUNKS = (1, 3, 16, 7)  # tokens, over and over


def with_stream_verification(
    bundle: Bundle, tokenizer: Tokenizer, report: Verification, bound: Bound
) -> Verification:
    """Add to a report how far the scores of a bundle's streams are from those of whole texts.

    Where there are segments behind exits, the streams are read through all of them too.

    The bound of the precision holds as for scores: of the mean |score difference| where activations
    are rounded. Both graphs have the same weights, but a chunk is summed in another order than a
    text, by parts in 10 million, and where that carries an activation over the middle of a step,
    what follows is rounded anew. Then two readings of a text differ as two roundings do.
    """
    if bundle.manifest.is_trajectory:
        differences = _of_trajectories(bundle, tokenizer)
        return _reported(report, bound, len(TRAJECTORIES), differences)
    bundle = replace(bundle, manifest=_unsmoothed(bundle.manifest))
    with open_unpublished(bundle, tokenizer) as guard:
        expected = [_numbers(guard.score(text).heads) for text in STREAM_TEXTS]
    ids_of_texts = tokenizer.encode_batch([clean(text) for text in STREAM_TEXTS])
    differences = []
    for segments in (False, True)[: 1 + (STREAM_HEAD in bundle.manifest.graphs)]:
        with open_unpublished(bundle, tokenizer, streaming=True, segments=segments) as guard:
            for ids, numbers in zip(ids_of_texts, expected, strict=True):
                with guard.stream() as stream:
                    for chunk in _chunks(ids):
                        result = stream.feed_tokens(chunk)
                streamed = _numbers(result.heads)
                differences += [abs(a - b) for a, b in zip(streamed, numbers, strict=True)]
    return _reported(report, bound, len(ids_of_texts), differences)


def _unsmoothed(manifest: Manifest) -> Manifest:
    """The manifest of a guard that gives a stream the score of the whole text so far."""
    for name in manifest.heads:
        decision = msgspec.structs.replace(manifest.decision(name), smoothing=1)
        manifest = manifest.deciding(name, decision)
    return manifest


def _of_trajectories(bundle: Bundle, tokenizer: Tokenizer) -> list[float]:
    """How far trajectories that grow by a message are from those that are read at once."""
    with open_unpublished(bundle, tokenizer) as guard:
        expected = [guard.score_trajectory(example).score for example in TRAJECTORIES]
    differences = []
    with open_unpublished(bundle, tokenizer, streaming=True) as guard:
        for example, score in zip(TRAJECTORIES, expected, strict=True):
            with guard.stream_trajectory(example["tools"]) as stream:
                for message in example["messages"]:
                    result = stream.feed(message)
            differences.append(abs(result.score - score))
    return differences


def _reported(
    report: Verification, bound: Bound, texts: int, differences: list[float]
) -> Verification:
    return msgspec.structs.replace(
        report,
        stream_texts=texts,
        stream_bound=bound.value,
        stream_max_difference=max(differences),
        stream_mean_difference=sum(differences) / len(differences),
        stream_bounded=bound.of,
    )


def _numbers(heads: Mapping[str, HeadScore]) -> list[float]:
    """Every head's score and the probabilities of its categories."""
    return [
        n for head in heads.values() for n in (head.score, *head.categories.values(), *head.orders)
    ]


def _chunks(ids: list[int]) -> list[list[int]]:
    starts = takewhile(lambda start: start < len(ids), accumulate(cycle(_CHUNKS), initial=0))
    return [ids[start:end] for start, end in pairwise([*starts, len(ids)])]
