"""A decoder reads the spans of a text off the pass that reads the text."""

import numpy as np
import pytest

from backbones import DECODERS
from siren_runtime import Guard
from siren_runtime.backends.by_stream import ScoreByStream
from streaming import BOUND, neurons_of
from texts import TEXTS

TEXT = "Explain how to bake bread. The sea is near! Nobody knows why\n" * 2


@pytest.mark.parametrize("name", DECODERS)
def test_a_span_is_the_mean_of_its_tokens_and_of_the_first(guards, name):
    plain, guard = guards(name)
    result = guard.score(TEXT, spans=[12])
    assert result.score == pytest.approx(plain.score(TEXT).score, abs=BOUND)
    tokenizer = guard.scorers[0].tokenizer
    encoded = tokenizer.encode(TEXT.strip(), special=False)
    neurons = neurons_of(guard, tokenizer.with_special(encoded.ids))
    head = guard.scorers[0].stream_backend.head
    before = tokenizer.special_before
    scores = {}
    for start in range(len(encoded.ids)):
        for stop in range(start + 1, min(start + 12, len(encoded.ids)) + 1):
            rows = neurons[before + start : before + stop]
            if before + start > 0:
                rows = np.concatenate([neurons[:1], rows])
            place = encoded.offsets[start][0], encoded.offsets[stop - 1][1]
            scores[place] = float(head(rows.mean(axis=0, keepdims=True)).score[0])
    (span,) = result.spans
    assert span.score == pytest.approx(scores[span.span], abs=BOUND)


def test_a_batch_has_the_spans_that_single_calls_have(guards):
    _, guard = guards("llama")
    texts = [*TEXTS[:12], TEXT]
    for text, result in zip(texts, guard.score_batch(texts, spans=True), strict=True):
        alone = guard.score(text, spans=True)
        assert result.score == pytest.approx(alone.score, abs=BOUND)
        found = [(s.tokens, pytest.approx(s.score, abs=BOUND)) for s in alone.spans]
        assert [(s.tokens, s.score) for s in result.spans] == found


def test_spans_make_a_guard_score_by_its_streaming_graph(export):
    bundle = export("llama").bundle
    guard = Guard.load(bundle, threads=1)
    expected = guard.score(TEXT).score
    assert not isinstance(guard.scorers[0].backend, ScoreByStream)
    assert guard.score(TEXT, spans=[8]).spans
    assert isinstance(guard.scorers[0].backend, ScoreByStream)
    opened = Guard.load(bundle, threads=1, spans=[8])
    assert isinstance(opened.scorers[0].backend, ScoreByStream)
    assert opened.score(TEXT).score == pytest.approx(expected, abs=BOUND)
