"""An encoder reads those spans by themselves that the pass over the text finds promising."""

import shutil

import numpy as np
import pytest

from siren_runtime import Guard
from siren_runtime.backends.base import SpansBackend
from siren_runtime.backends.batching import right_pad
from siren_runtime.bundle.graphs import SPANS
from siren_runtime.scoring.scorer import windows_of
from siren_runtime.text.passage import make_passage
from siren_runtime.text.reading import Limits
from streaming import BOUND
from texts import CORPUS
from tiny_bundle import edit_manifest

SIZES = [8, 16]
TEXT = " ".join(CORPUS)[:900]


@pytest.fixture(scope="module", params=["bert", "modernbert"])
def exported(request, export):
    return export(request.param, max_length=128).bundle


@pytest.fixture(scope="module")
def guard(exported):
    with Guard.load(exported, threads=1, spans=SIZES, max_unknown=1.0) as guard:
        yield guard


@pytest.fixture(scope="module")
def reads_all(exported, tmp_path_factory):
    """A guard of the same head whose bundle is from before there was a graph of spans."""
    old = shutil.copytree(exported, tmp_path_factory.mktemp("old") / "bundle")
    (old / "spans.onnx").unlink()

    def without(manifest):
        del manifest["graphs"][SPANS], manifest["files"]["spans.onnx"]

    edit_manifest(old, without)
    with Guard.load(old, threads=1, spans=SIZES, max_unknown=1.0) as guard:
        yield guard


def spans_read(guard, text):
    """Where the spans stand that are read of each window."""
    (scorer,) = guard.scorers
    passage = make_passage(text, max_bytes=1 << 20)
    limits = Limits(spans=tuple(SIZES), spans_asked=True)
    windows = windows_of(scorer.encode([passage], limits))
    return [[cut.span for cut in one.cuts] for one in scorer.run(windows).values()]


def test_the_mean_of_a_span_is_that_of_its_tokens(guard, reads_all):
    """The features are linear in the neurons; llm-siren's means of whole texts are the export's."""
    backend, tokenizer = guard.scorers[0].backend, guard.scorers[0].tokenizer
    assert isinstance(backend, SpansBackend)
    texts = tokenizer.encode_batch([TEXT[:200], TEXT[300:330]])
    tokens, mask = right_pad(texts)
    single = [(row, n, n + 1) for row, ids in enumerate(texts) for n in range(len(ids))]
    whole, each = backend.run_spans(tokens, mask, single)
    expected = reads_all.scorers[0].backend.run(tokens, mask)
    np.testing.assert_allclose(whole.features, expected.features, atol=1e-5)
    np.testing.assert_allclose(whole.score, expected.score, atol=1e-5)
    rows = np.array([row for row, _, _ in single])
    for row in range(2):
        means = each.features[rows == row].mean(axis=0)
        np.testing.assert_allclose(means, expected.features[row], atol=1e-5)
    _, part = backend.run_spans(tokens, mask, [(1, 2, 5), (0, 4, 20)])
    for found, (row, start, stop) in zip(part.features, [(1, 2, 5), (0, 4, 20)], strict=True):
        means = each.features[rows == row][start:stop].mean(axis=0)
        np.testing.assert_allclose(found, means, atol=1e-5)


def test_a_span_that_is_read_has_the_score_of_a_text_of_its_own(guard, reads_all):
    result = guard.score(TEXT)
    assert sorted(span.tokens for span in result.spans) == SIZES
    tokenizer = guard.scorers[0].tokenizer
    for span in result.spans:
        part = TEXT[slice(*span.span)]
        assert len(tokenizer.encode(part, special=False).ids) <= span.tokens
        assert span.score == pytest.approx(reads_all.score(part, spans=False).score, abs=BOUND)


def test_fewer_are_read_than_there_are(guard, reads_all):
    """None is higher than the highest of all; the whole text's score is as it was."""
    few, every = spans_read(guard, TEXT * 2), spans_read(reads_all, TEXT * 2)  # in two windows
    assert all(0 < len(one) < len(all_of_it) for one, all_of_it in zip(few, every, strict=True))
    assert all(set(one) < set(all_of_it) for one, all_of_it in zip(few, every, strict=True))
    one, other = guard.score(TEXT), reads_all.score(TEXT)
    assert one.score == pytest.approx(other.score, abs=BOUND)
    highest = {span.tokens: span.score for span in other.spans}
    assert all(span.score <= highest[span.tokens] + BOUND for span in one.spans)
    assert one.risk <= other.risk + BOUND


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_batch_has_the_spans_that_single_calls_have(guard, count):
    texts = [TEXT[start : start + 40 * (start % 7 + 1)] for start in range(0, 30 * count, 30)]
    for together, text in zip(guard.score_batch(texts), texts, strict=True):
        alone = guard.score(text)
        assert [s.span for s in together.spans] == [s.span for s in alone.spans]
        assert together.risk == pytest.approx(alone.risk, abs=BOUND)


def test_an_engine_that_fails_on_a_span_leaves_no_verdict(guard, monkeypatch):
    from siren_runtime.backends.onnxruntime.score import OnnxRuntimeSpansBackend
    from siren_runtime.errors import BackendError

    run = OnnxRuntimeSpansBackend.run

    def broken(self, input_ids, attention_mask):
        outputs = run(self, input_ids, attention_mask)
        outputs.logits[:] = outputs.score[:] = float("nan")
        return outputs

    monkeypatch.setattr(OnnxRuntimeSpansBackend, "run", broken)  # of spans alone
    with pytest.raises(BackendError):
        guard.score(TEXT)
