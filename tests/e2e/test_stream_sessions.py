"""A stream as a session: what it reports, what it refuses, and how it ends."""

import itertools
import json
import shutil
import threading
import warnings

import pytest

from backbones import DECODERS, FAMILIES
from siren_runtime import BackendError, Guard, InputError, Patience, Schedule
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.scoring.engines import Engines, open_backend, open_stream_backend
from siren_runtime.scoring.scorer import Scorer
from streaming import BOUND, LIMIT
from texts import CORPUS


def test_a_feed_pays_for_new_tokens_and_reports_what_it_took_back(guards):
    _, streaming = guards("qwen3")
    with streaming.stream() as stream:
        first = stream.feed("How do I bake bread at home")
        assert (first.computed, first.rolled_back) == (first.tokens, 0)
        second = stream.feed(" without a mixer?")
        assert second.computed == second.tokens - first.tokens + second.rolled_back
        assert second.computed < first.computed
        third = stream.feed("")
        assert (third.computed, third.rolled_back, third.score) == (0, 0, second.score)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_stand_at_the_text_of_their_tokens(guards, name):
    guard, streaming = guards(name)
    text = "How do I bake bread at home?"
    with streaming.stream() as stream:
        for piece in ("How do I ba", "ke bread", " at home?"):
            result = stream.feed(piece)
        scores = stream.scores
    assert [score.token for score in scores] == guard.scorers[0].tokenizer.encode(text).ids
    covered = {c for score in scores for c in range(score.start, score.end)}
    assert covered >= {c for c, character in enumerate(text) if character != " "}
    assert [score.end for score in scores if score.end] == sorted(
        score.end for score in scores if score.end
    )
    assert scores[-1].score == result.score == pytest.approx(guard.score(text).score, abs=BOUND)


@pytest.mark.parametrize(
    ("name", "aggregation"), zip(DECODERS, itertools.cycle(("mean", "window", "ema")))
)
def test_a_full_stream_slides_with_bounded_memory(guards, name, aggregation):
    _, streaming = guards(name)
    with streaming.stream(max_tokens=40, aggregation=aggregation, span=8) as stream:
        peak, tokens = 0, 0
        for _ in range(12):
            result = stream.feed(CORPUS[1] + " ")
            assert 0 < result.score < 1
            assert result.tokens > tokens
            peak, tokens = max(peak, stream.memory_bytes), result.tokens
            assert len(stream.scores) <= 40
        assert result.slid
        cache = streaming.scorers[0].stream_backend.cache
        assert peak <= 2 * 64 * 1.25 * (cache.bytes_per_token + 4 * 60)
        ends = [score.end for score in stream.scores]
        assert ends == sorted(ends)
        assert ends[-1] <= 12 * (len(CORPUS[1]) + 1)


def test_rules_decide_over_the_tokens_of_a_feed_and_are_taken_back_with_them(guards):
    _, streaming = guards("qwen3")
    always = Schedule(((0, 0.0),))
    with streaming.stream(rules=(always, Patience(3, 3, 0.0))) as stream:
        first, patient = stream.feed("How do I bake bread?").decisions
        assert (first.rule, first.token) == ("schedule(0: 0)", 0)
        assert (patient.rule, patient.token) == ("patience(3 of 3, 0)", 2)
    with streaming.stream(rules=[Schedule(((0, 1.0),))]) as stream:
        assert stream.feed("How do I bake bread?").decisions == ()


def test_an_interrupted_feed_counts_as_one_that_failed(guards, monkeypatch):
    from siren_runtime.streaming.reader import IncrementalReader

    _, streaming = guards("qwen3")

    def interrupt(*_):
        raise KeyboardInterrupt

    with streaming.stream() as stream:
        stream.feed("How")
        with monkeypatch.context() as patch:
            patch.setattr(IncrementalReader, "read", interrupt)
            with pytest.raises(KeyboardInterrupt):
                stream.feed(" do")
        with pytest.raises(BackendError, match="interrupted"):
            stream.feed(" I")


def test_a_closed_stream_refuses_use(guards):
    _, streaming = guards("qwen3")
    stream = streaming.stream()
    stream.feed("bread")
    stream.close()
    stream.close()
    for use in (
        lambda: stream.feed("x"),
        lambda: stream.feed_tokens([1]),
        lambda: stream.result,
        lambda: stream.scores,
        lambda: stream.memory_bytes,
        stream.reset,
    ):
        with pytest.raises(BackendError, match="closed"):
            use()
    streams = streaming.streams()
    inside = streams.open()
    streams.close()
    for use in (streams.open, lambda: inside.feed("x"), lambda: streams.feed([])):
        with pytest.raises(BackendError, match="closed"):
            use()


def test_a_thread_that_looks_during_a_feed_sees_no_failure(guards):
    _, streaming = guards("qwen3")
    looks, failures, done = [], [], threading.Event()
    with streaming.stream() as stream:

        def look():
            try:
                while not done.is_set():
                    looks.append((stream.result, len(stream.scores), stream.memory_bytes))
            except BackendError as error:
                failures.append(error)

        thread = threading.Thread(target=look)
        thread.start()
        for _ in range(20):
            stream.feed(" bread")
        done.set()
        thread.join()
    assert looks
    assert not failures


def test_a_guard_closed_while_its_stream_opens_stays_closed(export):
    bundle = load_bundle(export("qwen3", max_length=LIMIT).bundle)
    opening, go_on = threading.Event(), threading.Event()

    def slowly():
        opening.set()
        go_on.wait(60)
        return open_stream_backend(bundle)

    guard = Guard([Scorer(bundle, Engines(open_backend(bundle), slowly))])
    streamer, closer = threading.Thread(target=guard.stream), threading.Thread(target=guard.close)
    streamer.start()
    opening.wait(60)
    closer.start()
    go_on.set()
    streamer.join()
    closer.join()
    with pytest.raises(BackendError, match="guard is closed"):
        guard.score("x")


def test_a_closed_guard_opens_no_stream(export):
    guard = Guard.load(export("qwen3", max_length=LIMIT).bundle)
    guard.close()
    with pytest.raises(BackendError, match="guard is closed"):
        guard.stream()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "median"}, "aggregation"),
        ({"aggregation": "ema", "span": 0}, "span"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": "high"}, "threshold must be a number"),
        ({"prompt": 7}, "prompt"),
        ({"max_tokens": 4}, "max_tokens"),
        ({"max_tokens": 4096}, "from 8 to 128"),
    ],
)
def test_arguments_out_of_range_are_refused(guards, options, message):
    _, streaming = guards("qwen3")
    with pytest.raises(InputError, match=message):
        streaming.stream(**options)


def test_wrong_pieces_are_refused(guards):
    _, streaming = guards("qwen3")
    for wrong in (None, b"bytes", 7):
        with streaming.stream() as stream, pytest.raises(InputError, match="must be a str"):
            stream.feed(wrong)
    with streaming.stream() as stream:
        stream.feed("text")
        with pytest.raises(InputError, match="not both"):
            stream.feed_tokens([1])
    with streaming.stream() as stream, pytest.raises(InputError, match="token id"):
        stream.feed_tokens([1, -1])
    for wrong in (None, "text", [10**30]):
        with streaming.stream() as stream, pytest.raises(InputError, match="token id"):
            stream.feed_tokens(wrong)
    with streaming.streams(max_streams=1) as streams:
        only = streams.open()
        with pytest.raises(InputError, match="close one first"):
            streams.open()
        with pytest.raises(InputError, match="named twice"):
            streams.feed([(only, "a"), (only, "b")])
        for wrong in (3, [only]):
            with pytest.raises(InputError, match="pairs"):
                streams.feed(wrong)
        with pytest.raises(InputError, match="only a Stream can be fed, found str"):
            streams.feed([("x", "y")])
        assert only.feed("a").score > 0


def test_an_encoder_warns_once_that_it_reencodes_and_slides_within_its_window(export):
    guard = Guard.load(export("bert").bundle)
    with pytest.warns(UserWarning, match="re-encodes"):
        guard.stream().close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with guard.stream() as stream:
            for _ in range(6):
                result = stream.feed(CORPUS[0] + " ")
        assert result.slid
        with pytest.raises(InputError, match="no streaming graph"):
            guard.stream("prompt", response_only=True)


def test_tiers_of_calibration_stand_in_results_and_decide_as_rules(export, tmp_path):
    bundle = shutil.copytree(export("qwen3", max_length=LIMIT).bundle, tmp_path / "calibrated")
    tiers = [{"name": "block", "threshold": 1.0}, {"name": "log", "threshold": 0.0}]
    manifest = json.loads((bundle / "guard.json").read_text())
    (bundle / "guard.json").write_text(json.dumps({**manifest, "tiers": tiers}))

    guard = Guard.load(bundle, threads=1)
    with guard.stream(rules=guard.tiers) as stream:
        result = stream.feed("How do I bake bread?")
    (decision,) = result.decisions
    assert (decision.rule, decision.token) == ("tier(log, 0)", 0)
    assert result.tier == result.to_dict()["tier"] == guard.score("How do I bake bread?").tier
    with Guard.load(export("qwen3", max_length=LIMIT).bundle, threads=1).stream() as stream:
        result = stream.feed("How do I bake bread?")
    assert result.tier is None
    assert "tier" not in result.to_dict()
