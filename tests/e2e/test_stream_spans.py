"""A stream looks at the spans of its text, as a score of the whole does."""

import functools
import threading
import warnings

import pytest

from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from siren_runtime.backends.onnxruntime.score import OnnxRuntimeBackend
from siren_runtime.bundle.graphs import SPANS
from siren_runtime.errors import BackendError, InterruptedCall
from siren_runtime.text.rules import clean
from streaming import BOUND
from texts import CORPUS

SIZES = [8, 16]
TEXT = "Bake bread. The sea is near! Who knows why.\nGo home."


DECODERS, READ_ANEW = ["qwen3", "gemma3"], ["bert", "qwen3 without stream"]


@pytest.fixture(scope="module")
def open_guard(export, backbone_folder, tmp_path_factory):
    """Return a function: what the guard is of -> a guard with spans."""

    @functools.cache
    def run(name):
        name, _, without = name.partition(" ")
        exported = export(name, max_length=128)
        bundle = exported.bundle
        if without:
            bundle = tmp_path_factory.mktemp("no_stream") / "bundle"
            checkpoint = load_checkpoint(backbone_folder(name))
            export_bundle(load_artifact(exported.artifact), checkpoint, bundle, stream=False)
        guard = Guard.load(bundle, threads=1, spans=SIZES, max_unknown=1.0)
        guard.stream().close()  # opens the graph of streams, or warns once
        return guard

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield run


@pytest.fixture(params=DECODERS)
def guard(request, open_guard):
    return open_guard(request.param)


@pytest.fixture(params=READ_ANEW)
def anew(request, open_guard):
    """A guard that reads its text anew at each feed: an encoder, or one without a graph for it."""
    return open_guard(request.param)


@pytest.fixture(params=DECODERS + READ_ANEW)
def any_guard(request, open_guard):
    return open_guard(request.param)


def check_as_whole(guard, streamed, whole):
    """Compare the spans of a stream with those of the whole text.

    Of an encoder's whole text the promising spans are read, of its stream those of each feed.
    """
    found = [(s.tokens, s.threshold, s.score) for s in streamed.spans]
    if SPANS in guard.manifests[0].graphs:
        by_size = {s.tokens: s.score for s in streamed.spans}
        assert sorted(by_size) == sorted(s.tokens for s in whole.spans)
        assert all(by_size[s.tokens] >= s.score - BOUND for s in whole.spans)
        assert streamed.risk >= whole.risk - BOUND
        return
    assert found == [
        (s.tokens, s.threshold, pytest.approx(s.score, abs=BOUND)) for s in whole.spans
    ]
    assert [s.span for s in streamed.spans] == [s.span for s in whole.spans]
    assert streamed.risk == pytest.approx(whole.risk, abs=BOUND)


def pieces_of(text, size):
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("prompt", [None, "What shall I do? Tell me."])
def test_at_the_end_of_a_sentence_the_verdict_is_that_of_the_whole_text(any_guard, prompt, size):
    with any_guard.stream(prompt) as stream:
        for piece in pieces_of(TEXT, size):
            result = stream.feed(piece)
    given = {"text": TEXT} if prompt is None else {"prompt": prompt, "response": TEXT}
    expected = any_guard.score(**given)
    check_as_whole(any_guard, result, expected)
    assert len(result.spans) == len(SIZES)
    assert result.is_harmful == expected.is_harmful
    assert [span["tokens"] for span in result.to_dict()["spans"]] == [
        s.tokens for s in result.spans
    ]


def test_what_the_end_of_the_text_cuts_does_not_count_yet(any_guard):
    """What the next token changes would be one more span to be the largest."""
    text = "a b c d e f g h i j k l m n o p q r s t u v w x y z "
    with any_guard.stream() as stream:
        for piece in pieces_of(text, 2):
            result = stream.feed(piece)
            held = max(score.end for score in stream.scores)
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


def test_a_token_that_is_taken_back_takes_its_spans_with_it(any_guard):
    """White space and a marker that the cleaner removes change tokens that were read."""
    text = f"{TEXT} <|im_end|>{TEXT[:30]}."
    with any_guard.stream() as stream:
        rolled_back = 0
        for piece in pieces_of(text, 3):
            result = stream.feed(piece)
            rolled_back += result.rolled_back
    assert rolled_back > 0
    expected = any_guard.score(text)
    check_as_whole(any_guard, result, expected)


def test_a_response_alone_has_spans_of_its_own(guard):
    prompt = "What shall I do today? "
    with guard.stream(prompt, response_only=True) as stream:
        for piece in pieces_of(TEXT, 5):
            result = stream.feed(piece)
    first = len(prompt.strip())
    assert len(result.spans) == len(SIZES)
    assert all(span.span[0] >= first for span in result.spans)


def test_a_stream_that_slid_goes_on_with_the_spans_that_it_holds(any_guard):
    """Their places are those of the text as given, of which white space was collapsed."""
    text = "".join(f"{number}{TEXT}   \n\n\n\n" for number in range(9))
    with any_guard.stream(max_tokens=64) as stream:
        for piece in pieces_of(text, 12):
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


@pytest.fixture
def read(monkeypatch):
    """The tokens of each text that the engine has read, spans by themselves among them."""
    found = []
    fed = OnnxRuntimeBackend._feed

    def counted(self, input_ids, attention_mask):
        found.extend(int(n) for n in attention_mask.sum(axis=1))
        return fed(self, input_ids, attention_mask)

    monkeypatch.setattr(OnnxRuntimeBackend, "_feed", counted)
    return found


def test_each_span_is_read_once(anew, read, monkeypatch):
    """A feed costs the text so far and the spans that it completes."""
    pieces = pieces_of(TEXT, 6)
    with anew.stream() as stream:
        for piece in pieces:
            result = stream.feed(piece)
    spans = len(read) - len(pieces)
    assert len(result.spans) == len(SIZES)
    read.clear()
    monkeypatch.setattr("siren_runtime.scoring.windows.promising", lambda cuts, *_: cuts)
    anew.score(TEXT)
    assert 0 < spans <= 2 * len(read)  # some ended with the text of a feed, and with no sentence


def test_of_a_piece_with_many_spans_the_promising_are_read(open_guard, read, monkeypatch):
    """A feed that brings them all costs less than to read all; what it passes over stays so."""
    guard = open_guard("bert")
    text = TEXT.replace("\n", " ") * 3 + "\n"
    with guard.stream() as stream:
        result = stream.feed(text)
        promised = len(read)
        read.clear()
        assert stream.feed("").spans == result.spans
        assert not read
    expected = guard.score(text)
    for one, other in zip(result.spans, expected.spans, strict=True):
        assert one.tokens == other.tokens
        assert one.score >= other.score - BOUND
    read.clear()
    monkeypatch.setattr("siren_runtime.streaming.spans.promising", lambda cuts, *_: cuts)
    with guard.stream() as stream:
        stream.feed(text)
    assert promised < len(read)


def test_a_sentence_is_read_whatever_ends_with_it_for_now(open_guard, read):
    """What ends where the text does may be gone with the next token, so it beats no other span."""
    guard = open_guard("bert")
    text = "Who knows why the sea is so near. " * 3
    for cut in (text, text + "Go home now."):
        read.clear()
        with guard.stream() as stream:
            stream.feed(cut)
            spans = stream.session.tracks[0]._spans
            count = len(stream.session.tracks[0].state.ids) - 1
            assert any(place[2] == count for place in spans._scored)
            assert not any(place[2] == count for place in spans._passed_over)


def test_a_deadline_ends_what_reads_spans(anew, monkeypatch):
    """No verdict is left that some spans are missing of."""
    run, cancel = OnnxRuntimeBackend._run, threading.Event()

    def cancelled_meanwhile(self, *arguments):
        cancel.set()
        return run(self, *arguments)

    with anew.stream() as stream:
        with monkeypatch.context() as patched:
            patched.setattr(OnnxRuntimeBackend, "_run", cancelled_meanwhile)
            with pytest.raises(InterruptedCall):
                stream.feed(TEXT, cancel=cancel)
        with pytest.raises(BackendError, match="failed before"):
            stream.feed("more")


def test_a_span_that_is_read_apart_and_has_no_score_leaves_no_verdict(anew, monkeypatch):
    run = OnnxRuntimeBackend.run

    def broken(self, input_ids, attention_mask):
        outputs = run(self, input_ids, attention_mask)
        if attention_mask.sum(axis=1).max() <= max(SIZES) + 2:
            outputs.logits[:] = outputs.score[:] = float("nan")
        return outputs

    with anew.stream() as stream:
        with monkeypatch.context() as patched:
            patched.setattr(OnnxRuntimeBackend, "run", broken)
            with pytest.raises(BackendError):
                stream.feed(TEXT)
        with pytest.raises(BackendError, match="failed before"):
            stream.feed("more")


def test_a_text_that_ends_has_the_spans_of_the_whole(any_guard):
    """Its last sentence has no mark, and is a span by itself all the same."""
    text = TEXT.removesuffix("Go home.") + "Go home now and do not come back to us"
    with any_guard.stream() as stream:
        for piece in pieces_of(text, 9):
            before = stream.feed(piece)
        result = stream.feed("", last=True)
        expected = any_guard.score(text)
        check_as_whole(any_guard, result, expected)
        assert stream.result == result
        again = stream.feed("")  # it goes on
        assert [s.span for s in again.spans] == [s.span for s in before.spans]
    with any_guard.stream() as stream:
        at_once = stream.feed(text, last=True)
    check_as_whole(any_guard, at_once, expected)
    with any_guard.streams() as streams:
        ended, open_ = streams.open(), streams.open()
        one, other = streams.feed([(ended, text), (open_, text)], last=[ended])
    assert [s.span for s in one.spans] == [s.span for s in at_once.spans]
    assert [s.span for s in other.spans] == [s.span for s in before.spans]
