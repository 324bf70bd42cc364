"""A stream of a decoder looks at the spans of its text, as a score of the whole does."""

import pytest

from siren_runtime import Guard
from siren_runtime.errors import BackendError
from siren_runtime.text.rules import clean
from streaming import BOUND
from texts import CORPUS

SIZES = [8, 16]
TEXT = "Bake bread. The sea is near! Who knows why.\nGo home."


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def guard(request, export):
    bundle = export(request.param, max_length=128).bundle
    return Guard.load(bundle, threads=1, streaming=True, spans=SIZES, max_unknown=1.0)


def spans_of(result):
    return [(s.tokens, s.threshold, pytest.approx(s.score, abs=BOUND)) for s in result.spans]


def pieces_of(text, size):
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("prompt", [None, "What shall I do? Tell me."])
def test_at_the_end_of_a_sentence_the_verdict_is_that_of_the_whole_text(guard, prompt, size):
    with guard.stream(prompt) as stream:
        for piece in pieces_of(TEXT, size):
            result = stream.feed(piece)
    given = {"text": TEXT} if prompt is None else {"prompt": prompt, "response": TEXT}
    expected = guard.score(**given)
    found = [(s.tokens, s.threshold, s.score) for s in result.spans]
    assert found == spans_of(expected)
    assert len(found) == len(SIZES)
    assert result.risk == pytest.approx(expected.risk, abs=BOUND)
    assert result.is_harmful == expected.is_harmful
    assert [span.span for span in result.spans] == [span.span for span in expected.spans]
    assert [span["tokens"] for span in result.to_dict()["spans"]] == [
        s.tokens for s in result.spans
    ]


def test_what_the_end_of_the_text_cuts_does_not_count_yet(guard):
    """What the next token changes would be one more span to be the largest."""
    text = "a b c d e f g h i j k l m n o p q r s t u v w x y z "
    with guard.stream() as stream:
        for piece in pieces_of(text, 2):
            result = stream.feed(piece)
            held = stream.scores[-1].end
            assert all(span.span[1] < held for span in result.spans)
    assert len(result.spans) == len(SIZES)


def test_a_span_decides_where_the_whole_does_not(guard):
    """The threshold stands between the whole text's score and its highest span's."""
    texts = [TEXT, *(text for text in CORPUS if len(text) > 60)]
    for text in texts:
        result = guard.score(text + ".")
        if result.risk - result.score > 1e-3:
            break
    else:
        pytest.fail("no text has a span above the whole")
    threshold = (result.risk + result.score) / 2
    with guard.stream(threshold=threshold) as stream:
        assert stream.feed(text + ".").is_harmful
    with guard.stream(threshold=threshold, aggregation="window", span=1000) as stream:
        assert not stream.feed(text + ".").spans


def test_a_token_that_is_taken_back_takes_its_spans_with_it(guard):
    """White space and a marker that the cleaner removes change tokens that were read."""
    text = f"{TEXT} <|im_end|>{TEXT[:30]}."
    with guard.stream() as stream:
        rolled_back = 0
        for piece in pieces_of(text, 3):
            result = stream.feed(piece)
            rolled_back += result.rolled_back
    assert rolled_back > 0
    expected = guard.score(text)
    assert [(s.tokens, s.threshold, s.score) for s in result.spans] == spans_of(expected)
    assert [span.span for span in result.spans] == [span.span for span in expected.spans]


def test_a_response_alone_has_spans_of_its_own(guard):
    prompt = "What shall I do today? "
    with guard.stream(prompt, response_only=True) as stream:
        for piece in pieces_of(TEXT, 5):
            result = stream.feed(piece)
    first = len(prompt.strip())
    assert len(result.spans) == len(SIZES)
    assert all(span.span[0] >= first for span in result.spans)


def test_a_stream_that_slid_goes_on_with_the_spans_that_it_holds(guard):
    """Their places are those of the text as given, of which white space was collapsed."""
    text = "".join(f"{number}{TEXT}   \n\n\n\n" for number in range(9))
    with guard.stream(max_tokens=64) as stream:
        for piece in pieces_of(text, 50):
            result = stream.feed(piece)
            held = clean(text[text.index(stream.scores[0].text.strip()) :])
            for span in result.spans:
                assert clean(text[slice(*span.span)]) in held
    assert result.slid
    last = max(span.span[1] for span in result.spans)
    assert last > text.index("8Bake")
    assert len(result.spans) == len(SIZES)
    assert all(0 < span.score < 1 for span in result.spans)


def test_an_engine_that_fails_in_spans_leaves_no_verdict(guard, monkeypatch):
    with guard.stream() as stream:
        stream.feed(TEXT[:20])
        with monkeypatch.context() as patched:
            from siren_runtime.streaming.state import StreamState

            patched.setattr(StreamState, "means", lambda self, spans: self._rows[:1] * float("nan"))
            with pytest.raises(BackendError):
                stream.feed(TEXT[20:])
        with pytest.raises(BackendError, match="failed before"):
            stream.feed("more")
