"""Many streams in one batch: exact, independent of each other, of bounded memory."""

import shutil
import threading

import numpy as np
import pytest

from backbones import DECODERS, FAMILIES
from siren_runtime import BackendError, Guard, InputError, InterruptedCall, StreamResult
from siren_runtime.streaming.cache import KeyValueCache
from siren_runtime.text.deadline import NO_DEADLINE
from streaming import BOUND, LIMIT
from texts import CORPUS


@pytest.mark.parametrize("name", FAMILIES)
def test_many_streams_in_one_batch_join_leave_and_stay_exact(guards, name):
    guard, streaming = guards(name)
    rng = np.random.default_rng(5)
    with streaming.streams(max_streams=8) as streams:
        texts = {}
        for _ in range(40):
            if len(texts) < 8 and rng.random() < 0.4:
                texts[streams.open()] = ""
            if len(texts) > 2 and rng.random() < 0.2:
                gone = list(texts)[int(rng.integers(len(texts)))]
                gone.close()
                del texts[gone]
            fed = []
            for stream in texts:
                if rng.random() < 0.8 and len(texts[stream]) < 90:
                    piece = str(rng.choice(CORPUS))[: int(rng.choice([0, 1, 3, 30]))]
                    fed.append((stream, piece))
                    texts[stream] += piece
            for (stream, _), result in zip(fed, streams.feed(fed), strict=True):
                expected = guard.score(texts[stream]).score
                assert result.score == pytest.approx(expected, abs=BOUND)
        assert len(streams) == len(texts)
        if name in DECODERS:
            assert streams.memory_bytes == sum(stream.memory_bytes for stream in texts) > 0
            assert streams.memory_bytes <= 8 * streams.max_tokens * streams.bytes_per_token * 1.25


def test_a_call_that_ends_leaves_the_streams_right_that_were_read(guards, monkeypatch):
    clean, guard = guards("llama")
    ids, gone = guard.scorers[0].tokenizer.encode(CORPUS[2]).ids, threading.Event()
    backend = guard.scorers[0].stream_backend
    step = backend.step

    def last(*arrays):
        gone.set()
        return step(*arrays)

    with guard.streams() as streams:
        short, other, long = streams.open(), streams.open(), streams.open()
        with monkeypatch.context() as patch:
            patch.setattr(backend, "step", last)
            pieces = [(short, ids[:1]), (other, ids[:1]), (long, ids)]  # read from the shortest on
            results = streams.feed(pieces, cancel=gone)
        assert [type(result) for result in results] == [StreamResult, StreamResult, InterruptedCall]
        assert str(results[2]) == f"cancelled before {len(ids) - 1} tokens of the stream were read"
        with pytest.raises(BackendError, match=r"cancelled before .* reset it"):
            long.feed_tokens(ids)
        long.reset()
        expected = pytest.approx(clean.score(CORPUS[2]).score, abs=BOUND)
        assert long.feed_tokens(ids).score == expected
        assert short.feed_tokens(ids[1:]).score == expected


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_streams_that_are_read_between_the_runs_of_others_are_exact_and_so_are_these(guards, name):
    clean, guard = guards(name)
    text, read = CORPUS[2], ""
    with guard.streams() as streams:
        kept, gone, short, other, long = (streams.open() for _ in range(5))
        opened = []

        def between():
            nonlocal read
            read += "b"
            opened.append(streams.open())
            results = streams.feed([(kept, "b"), (opened[-1], text[:40])])
            for given, result in zip((read, text[:40]), results, strict=True):
                assert result.score == pytest.approx(clean.score(given).score, abs=BOUND)
            gone.close()  # whose slot another takes

        pieces = [(short, "a"), (other, "b"), (long, text)]  # read from the shortest on
        results = streams.read([(*piece, NO_DEADLINE, False) for piece in pieces], between)
        assert opened
        for (_, given), result in zip(pieces, results, strict=True):
            assert result.score == pytest.approx(clean.score(given).score, abs=BOUND)
        expected = clean.score(text[:40] + "c").score
        assert opened[0].feed("c").score == pytest.approx(expected, abs=BOUND)


def test_a_cache_that_cannot_grow_leaves_the_other_streams_right(guards, monkeypatch):
    clean, guard = guards("qwen3")
    with guard.streams() as streams:
        one, other = streams.open(), streams.open()
        streams.feed([(one, "How do I"), (other, "good")])
        made, make = [], KeyValueCache._make

        def limited(cache, slots, tokens):
            made.append(tokens)
            if len(made) > 3:
                raise MemoryError
            return make(cache, slots, tokens)

        with monkeypatch.context() as patch:
            patch.setattr(KeyValueCache, "_make", limited)
            with pytest.raises(BackendError, match="no memory for 2 streams"):
                one.feed(" bread" * 20)
        result = other.feed(" day")
        assert result.score == pytest.approx(clean.score("good day").score, abs=BOUND)
        one.reset()
        long = "bread" + " bread" * 20
        assert one.feed(long).score == pytest.approx(clean.score(long).score, abs=BOUND)


def test_closing_a_stream_takes_no_memory(guards, monkeypatch):
    """Though the last one, which nothing was read of, takes the slot of another."""
    clean, guard = guards("qwen3")

    def none(cache, slots, tokens):
        raise MemoryError

    with guard.streams() as streams:
        gone = streams.open()
        gone.feed("How do I")
        kept = streams.open()
        with monkeypatch.context() as patch:
            patch.setattr(KeyValueCache, "_make", none)
            gone.close()
        assert kept.feed("good day").score == pytest.approx(
            clean.score("good day").score, abs=BOUND
        )


@pytest.fixture
def poisoned(export, tmp_path):
    """A guard whose embedding of one token is NaN, and that token."""
    import onnx

    bundle = shutil.copytree(export("qwen3", max_length=LIMIT).bundle, tmp_path / "poisoned")
    graph = onnx.load(bundle / "stream.onnx", load_external_data=False).graph
    (table,) = (t for t in graph.initializer if t.name == "embed_tokens.weight")
    offset = next(int(e.value) for e in table.external_data if e.key == "offset")
    token = Guard.load(bundle).scorers[0].tokenizer.encode("!").ids[0]
    with (bundle / "weights.bin").open("r+b") as file:
        file.seek(offset + 4 * table.dims[1] * token)
        file.write(np.full(table.dims[1], np.nan, np.float32).tobytes())
    return Guard.load(bundle, threads=1, verify="size"), token


def test_a_stream_that_fails_leaves_the_others_right_and_refuses_to_go_on(poisoned, guards):
    clean, _ = guards("qwen3")
    guard, _ = poisoned
    with guard.streams() as streams:
        good, bad, lost, odd = (streams.open() for _ in range(4))
        first = streams.feed([(good, "How do I"), (bad, "How"), (lost, "now"), (odd, [7])])
        assert all(result.score > 0 for result in first)
        results = streams.feed([(bad, " !"), (good, " bake"), (lost, "\ud800"), (odd, [10**6])])
        assert [type(result) for result in results[::2]] == [BackendError, InputError]
        assert isinstance(results[3], InputError)
        assert results[1].score == pytest.approx(clean.score("How do I bake").score, abs=BOUND)
        for failed in (bad, lost, odd):
            with pytest.raises(BackendError, match="failed before"):
                failed.feed("bread")
            with pytest.raises(BackendError, match="failed before"):
                _ = failed.result
        bad.reset()
        assert bad.feed("bread").score == pytest.approx(clean.score("bread").score, abs=BOUND)
        good_again = good.feed(" bread")
        assert good_again.score == pytest.approx(
            clean.score("How do I bake bread").score, abs=BOUND
        )


def test_a_lone_surrogate_in_a_long_piece_or_prompt_is_that_streams_alone(export):
    bundle = export("qwen3", max_length=LIMIT).bundle
    guard = Guard.load(bundle, threads=1, max_tokens_per_text=64)
    long = "x " * 64 + "\ud800"  # long enough to be counted in tokens before it is cleaned
    with guard.streams() as streams:
        good, bad, behind = streams.open(), streams.open(), streams.open(prompt=long)
        found = streams.feed([(good, "hello"), (bad, long), (behind, "hello")])
        assert isinstance(found[0], StreamResult)
        for error, what in zip(found[1:], ("piece", "prompt"), strict=True):
            assert isinstance(error, InputError)
            assert f"the {what} holds a lone surrogate U+D800" in str(error)
        assert good.feed(" you").score == pytest.approx(guard.score("hello you").score, abs=BOUND)
