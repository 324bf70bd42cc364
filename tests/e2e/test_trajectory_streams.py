"""Trajectories that grow turn by turn: the score of the whole, at the cost of what is new."""

import json
import threading

import pytest

from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import BackendError, Guard, InputError, InterruptedCall
from siren_runtime.scoring.scorer import Scorer
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_runtime.text.tokenizer import Tokenizer
from trajectories import MESSAGES, TOOLS


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stream_costs_the_tokens_of_new_turns(trajectory_bundle, streaming):
    _, bundle = trajectory_bundle(max_length=1000)
    guard = Guard.load(bundle, threads=1, streaming=streaming, **AS_LLM_SIREN)
    read = 0
    with guard.stream_trajectory(TOOLS) as stream:
        for number, message in enumerate(MESSAGES, start=1):
            result = stream.feed(message)
            whole = guard.score_trajectory(messages=MESSAGES[:number], tools=TOOLS)
            assert result.score == pytest.approx(whole.score, abs=1e-5)
            assert (result.tokens, result.is_harmful) == (whole.tokens, whole.is_harmful)
            read += result.computed - result.rolled_back
            assert read == result.tokens
            if message["role"] not in ("developer", "tool"):  # which are added to what was there
                assert result.rolled_back <= 2
        assert stream.messages == MESSAGES
        assert set(result.to_dict()) >= {"score", "computed", "rolled_back"}
        changed = [*MESSAGES[:-1], {"role": "assistant", "content": "No."}]
        again = stream.score(changed)
        assert 0 < again.rolled_back < 30
        assert again.score == pytest.approx(
            guard.score_trajectory(messages=changed, tools=TOOLS).score, abs=1e-5
        )
        same = stream.score(changed)
        assert (same.computed, same.rolled_back, same.score) == (0, 0, again.score)


def test_what_truncation_moves_is_rolled_back(trajectory_bundle):
    _, bundle = trajectory_bundle(max_length=48)
    guard = Guard.load(bundle, threads=1, **AS_LLM_SIREN)
    with guard.stream_trajectory(TOOLS) as stream:
        stream.feed(*MESSAGES[:4])
        result = stream.feed(MESSAGES[4])
        assert (result.computed, result.rolled_back, result.truncated) == (24, 24, True)
        whole = guard.score_trajectory(messages=MESSAGES[:5], tools=TOOLS)
        assert result.score == pytest.approx(whole.score, abs=1e-5)
        assert (result.omitted, result.unread) == (whole.omitted, whole.unread)


def test_a_message_that_is_refused_leaves_a_stream_as_it_was(trajectory_bundle):
    _, bundle = trajectory_bundle()
    guard = Guard.load(bundle, threads=1, **AS_LLM_SIREN)
    with guard.stream_trajectory(threshold=0.0) as stream:
        first = stream.feed(MESSAGES[2])
        assert first.is_harmful
        for bad in ({"role": "critic"}, {"role": "user", "content": "\ud800"}, "hi"):
            with pytest.raises(InputError):
                stream.feed(bad)
        assert stream.result == first
        assert stream.feed(MESSAGES[9]).score == pytest.approx(
            guard.score_trajectory(messages=[MESSAGES[2], MESSAGES[9]]).score, abs=1e-5
        )
        stream.reset()
        assert stream.result is None
        assert stream.feed(MESSAGES[2]).score == pytest.approx(first.score, abs=1e-6)


def test_a_message_that_is_not_to_be_called_safe_is_not_kept(trajectory_bundle):
    _, bundle = trajectory_bundle()
    guard = Guard.load(bundle, threads=1, max_unknown=0.5)
    with guard.stream_trajectory(threshold=1.0) as stream:
        first = stream.feed(MESSAGES[2])
        with pytest.raises(InputError, match="unknown to the tokenizer"):
            stream.feed({"role": "user", "content": "\u200b".join("looooong" * 30)})
        assert (stream.messages, stream.result) == ([MESSAGES[2]], first)
        assert stream.feed().score == pytest.approx(first.score, abs=1e-5)


def test_a_stream_that_holds_fewer_tokens_than_the_head_reads_drops_none(
    trajectory_bundle, monkeypatch
):
    """As a plan's may; the engines of ONNX Runtime hold all."""
    _, bundle = trajectory_bundle()
    guard = Guard.load(bundle, threads=1, **AS_LLM_SIREN)
    reader_of = Scorer.stream_reader
    monkeypatch.setattr(Scorer, "stream_reader", lambda scorer, _: reader_of(scorer, 16))
    with guard.stream_trajectory() as stream:
        first = stream.feed({"role": "user", "content": "hi"})
        with pytest.raises(InputError, match="streams hold 16 here"):
            stream.feed(*MESSAGES[2:5])
        assert stream.feed().score == pytest.approx(first.score, abs=1e-5)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_closed_stream_says_so_and_may_be_closed_again(trajectory_bundle, streaming):
    _, bundle = trajectory_bundle()
    guard = Guard.load(bundle, threads=1, streaming=streaming, **AS_LLM_SIREN)
    with guard.stream_trajectory() as stream:
        stream.feed(MESSAGES[2])
        stream.close()
        for use in (lambda: stream.feed(MESSAGES[9]), stream.reset):
            with pytest.raises(BackendError, match="closed"):
                use()


def test_a_stream_whose_engine_failed_has_no_verdict_until_it_is_reset(
    trajectory_bundle, monkeypatch
):
    _, bundle = trajectory_bundle()
    guard = Guard.load(bundle, threads=1, **AS_LLM_SIREN)
    with guard.stream_trajectory() as stream:
        stream.feed(MESSAGES[2])
        backend = guard.scorers[0].stream_backend

        def fail(*_):
            raise BackendError("out of memory")

        with monkeypatch.context() as patched:
            patched.setattr(type(backend), "step", fail)
            with pytest.raises(BackendError, match="out of memory"):
                stream.feed(MESSAGES[9])
        with pytest.raises(BackendError, match="failed before"):
            stream.feed(MESSAGES[9])
        stream.reset()
        assert 0 <= stream.feed(MESSAGES[2]).score <= 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeoutError])
def test_a_stream_whose_feed_was_interrupted_has_no_verdict_until_it_is_reset(
    kind, trajectory_bundle, monkeypatch
):
    guard = Guard.load(trajectory_bundle()[1], threads=1, **AS_LLM_SIREN)
    with guard.stream_trajectory() as stream:
        first = stream.feed(MESSAGES[2])

        def interrupt(*_):
            raise kind

        with monkeypatch.context() as patched:
            patched.setattr(type(guard.scorers[0].stream_backend), "step", interrupt)
            with pytest.raises(kind):
                stream.feed(MESSAGES[9])
        with pytest.raises(BackendError, match=r"failed before .*interrupted"):
            stream.feed(MESSAGES[9])
        stream.reset()
        assert stream.feed(MESSAGES[2]).score == pytest.approx(first.score, abs=1e-6)


def test_a_deadline_ends_a_feed(trajectory_bundle, monkeypatch):
    _, bundle = trajectory_bundle()
    guard = Guard.load(bundle, threads=1, **AS_LLM_SIREN)
    with guard.stream_trajectory() as stream:
        first = stream.feed(MESSAGES[2], deadline=100)
        with pytest.raises(InterruptedCall, match="1e-09 s passed while the text was tokenized"):
            stream.feed(MESSAGES[9], deadline=1e-9)
        assert stream.result == first
        gone, encode = threading.Event(), Tokenizer.encode
        with monkeypatch.context() as patched:
            patched.setattr(Tokenizer, "encode", lambda *a, **k: gone.set() or encode(*a, **k))
            with pytest.raises(InterruptedCall, match="cancelled before"):
                stream.feed(MESSAGES[9], cancel=gone)
        with pytest.raises(BackendError, match="failed before"):
            stream.feed(MESSAGES[9])
        stream.reset()
        assert stream.feed(MESSAGES[2]).score == pytest.approx(first.score, abs=1e-6)


def test_without_a_streaming_graph_each_turn_reads_all(trajectory_bundle, tmp_path):
    head, _ = trajectory_bundle()
    checkpoint = load_checkpoint(
        json.loads((head / "siren_config.json").read_text())["base_model"]["model_id"]
    )
    export_bundle(load_artifact(head), checkpoint, tmp_path / "bundle", stream=False)
    guard = Guard.load(tmp_path / "bundle", threads=1, **AS_LLM_SIREN)
    with pytest.warns(UserWarning, match="no streaming graph"):
        stream = guard.stream_trajectory()
    for number in range(2, 6):
        result = stream.feed(*MESSAGES[: 1 if number == 2 else 0], MESSAGES[number])
        assert result.computed == min(result.tokens, 48)
    whole = guard.score_trajectory(messages=[MESSAGES[0], *MESSAGES[2:6]])
    assert result.score == pytest.approx(whole.score, abs=1e-6)
    stream.close()
