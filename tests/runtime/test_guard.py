"""Guard: the API of llm-siren, exact whatever the batch, and never a verdict without a score."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from siren_guard import ScoreResult as UpstreamScoreResult

from guards import load_guard
from siren_runtime import BackendError, Guard, InputError, Patience, ScoreResult
from siren_runtime.bundle.manifest import Manifest
from texts import TEXTS
from tiny_bundle import CLASSES, WIDTH, edit_manifest, make_bundle, make_model, save_model, seal

TEXT = st.text(max_size=50)


# --- the result


def test_a_result_has_llm_sirens_fields(guard: Guard) -> None:
    result = guard.score("hello")
    theirs = {field.name: getattr(result, field.name) for field in fields(UpstreamScoreResult)}
    assert UpstreamScoreResult(**theirs).to_dict() == theirs
    assert result.to_dict().items() >= theirs.items()
    assert {type(value) for value in theirs.values()} == {float, bool}


def test_a_result_is_frozen_and_compares_without_its_features(guard: Guard) -> None:
    result = guard.score("hello", features=True)
    assert result == guard.score("hello")
    with pytest.raises(FrozenInstanceError):
        result.score = 0.0  # type: ignore[misc]


def test_features_come_on_request(guard: Guard) -> None:
    assert guard.score("hello").features is None
    single = guard.score("hello", features=True).features
    batch = guard.score_batch(["a", "hello", "b" * 40], features=True)[1].features
    assert single is not None
    assert batch is not None
    assert single.dtype == np.float32
    assert single.shape == (WIDTH,)
    assert batch.base is None  # holding one result does not hold the batch
    np.testing.assert_allclose(single, batch, atol=1e-5)


def test_a_score_is_the_softmax_of_the_graph_over_the_mean_of_the_real_tokens(
    guard: Guard, bundle: Path
) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(bundle / "score.onnx"))
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.encode("hello\nworld").ids
    features = weights["embedding"][ids].mean(axis=0)
    exponents = np.exp(features @ weights["linear"])
    result = guard.score(prompt="hello", response="world", features=True)
    np.testing.assert_allclose(result.features, features, atol=1e-5)
    assert result.score == pytest.approx(exponents[1] / exponents.sum(), abs=1e-5)


# --- arguments


def test_prompt_and_response_are_scored_as_their_join(guard: Guard) -> None:
    assert guard.score(prompt="a", response="b") == guard.score("a\nb")
    assert guard.score(prompt="a") == guard.score("a")
    assert guard.score(response="b") == guard.score("b")
    assert guard.score(prompt="", response="b") == guard.score("b")
    assert guard.score(prompt="") == guard.score(" ") == guard.score("")


def test_calling_and_streaming_are_scoring(guard: Guard) -> None:
    assert guard("hello") == guard.score("hello") == guard.score_streaming("hello")
    assert guard(prompt="a", threshold=0.1) == guard.score("a", threshold=0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda guard: guard.score(),
        lambda guard: guard.score("a", prompt="b"),
        lambda guard: guard.score("a", response="b"),
        lambda guard: guard.score(b"a"),
        lambda guard: guard.score(prompt=1),
        lambda guard: guard.score("\ud800"),
        lambda guard: guard.score_streaming(None),
        lambda guard: guard.score_batch("one string"),
        lambda guard: guard.score_batch(b"bytes"),
        lambda guard: guard.score_batch(3),
        lambda guard: guard.score_batch(["a"], token_budget=0),
        lambda guard: guard.score_batch(["a"], token_budget=1.5),
        lambda guard: guard.score_batch(["a"], token_budget=True),
        lambda guard: guard.score("a", threshold=True),
        lambda guard: guard.score("a", threshold=np.True_),
    ],
)
def test_what_cannot_be_scored_is_an_input_error(
    guard: Guard, call: Callable[[Guard], Any]
) -> None:
    with pytest.raises(InputError):
        call(guard)


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_whole_numbers_of_numpy_are_taken(bundle: Path) -> None:
    number: Any
    for number in (np.int64(8), np.uint8(8), np.array(8)):
        guard = Guard.load(bundle, threads=np.int32(1))  # type: ignore[arg-type]
        texts = ["a", "hello"]
        assert guard.score_batch(texts, token_budget=number) == guard.score_batch(
            texts, token_budget=8
        )
        with guard.streams(max_streams=number, max_tokens=number) as streams:
            assert type(streams.max_tokens) is int
            assert streams.max_tokens == 8


@pytest.mark.filterwarnings("ignore:.*re-encodes")
@pytest.mark.parametrize("wrong", [True, np.True_, 0, -1, 1.0, "1", None, math.nan])
@pytest.mark.parametrize("name", ["token_budget", "max_streams", "max_tokens", "threads", "span"])
def test_what_is_no_whole_number_is_refused_by_its_name(
    bundle: Path, guard: Guard, name: str, wrong: Any
) -> None:
    calls: dict[str, Callable[[], object]] = {
        "token_budget": lambda: guard.score_batch([], token_budget=wrong),
        "max_streams": lambda: guard.streams(max_streams=wrong),
        "max_tokens": lambda: guard.streams(max_tokens=wrong),
        "threads": lambda: Guard.load(bundle, threads=wrong),
        "span": lambda: guard.stream(aggregation="ema", span=wrong),
    }
    if wrong is None and name != "span":  # the default
        return
    with pytest.raises(InputError, match=f"{name} must be a whole number from .*found"):
        calls[name]()


@pytest.mark.filterwarnings("ignore:.*re-encodes")
@pytest.mark.parametrize("wrong", ["no", "", 0, 1, None, [True]])
@pytest.mark.parametrize("name", ["streaming", "exits", "features", "response_only", "last"])
def test_what_is_no_truth_value_is_refused_by_its_name(
    bundle: Path, guard: Guard, name: str, wrong: Any
) -> None:
    calls: dict[str, Callable[[], object]] = {
        "streaming": lambda: Guard.load(bundle, streaming=wrong),
        "exits": lambda: Guard.load(bundle, exits=wrong),
        "features": lambda: guard.score("a", features=wrong),
        "response_only": lambda: guard.stream("a", response_only=wrong),
        "last": lambda: guard.stream().feed("a", last=wrong),
    }
    with pytest.raises(InputError, match=f"{name} must be True or False, found"):
        calls[name]()


def test_truth_values_and_lengths_of_numpy_are_taken(bundle: Path) -> None:
    no: Any = np.False_
    guard = Guard.load(bundle, streaming=no, exits=no, buckets=np.array([8, 16]))  # type: ignore[arg-type]
    assert guard.score("hello", features=no).features is None


@pytest.mark.filterwarnings("ignore:.*re-encodes")
@pytest.mark.parametrize("rules", ["x", b"x", 3, Patience(1, 2, 0.5), ["x"], [0.5], [Patience]])
def test_rules_that_are_none_are_refused(guard: Guard, rules: Any) -> None:
    with pytest.raises(InputError, match="rules"):
        guard.stream(rules=rules)


@pytest.mark.parametrize("bad", [None, 3, b"x", "\udfff"])
def test_a_bad_text_in_a_batch_is_named_by_its_index(guard: Guard, bad: Any) -> None:
    with pytest.raises(InputError, match=r"^texts\[2\]: "):
        guard.score_batch(["a", "b", bad])


@pytest.mark.parametrize("threshold", [math.nan, -0.1, 1.1, math.inf, "high", [0.5], 10**400])
def test_a_threshold_outside_0_to_1_is_refused(guard: Guard, threshold: Any) -> None:
    with pytest.raises(InputError, match="threshold"):
        guard.score("a", threshold=threshold)
    with pytest.raises(InputError, match="threshold"):
        guard.score_batch([], threshold=threshold)


def test_a_score_at_the_threshold_is_harmful(guard: Guard) -> None:
    score = guard.score("hello").score
    assert guard.score("hello", threshold=score).is_harmful
    assert not guard.score("hello", threshold=math.nextafter(score, 1)).is_harmful
    assert guard.score("hello", threshold=0).is_harmful


def test_the_default_threshold_is_the_bundles(own_bundle: Path) -> None:
    edit_manifest(own_bundle, lambda manifest: manifest.update(threshold=0.25))
    guard = Guard.load(own_bundle)
    assert guard.default_threshold == guard.score("a").threshold == 0.25
    assert guard.score("a", threshold=0.75).threshold == 0.75


def test_a_guard_says_what_it_is(guard: Guard) -> None:
    assert guard.base_model_id == "example/bag-of-bytes"
    assert guard.backend == "cpu"
    assert isinstance(guard.manifest, Manifest)


# --- batches


def test_an_empty_batch_gives_an_empty_list(guard: Guard) -> None:
    assert guard.score_batch([]) == []


@pytest.mark.parametrize("budget", [1, 50, 4096])
def test_a_batch_gives_the_single_scores_in_order(
    guard: Guard, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard.scorers[0].backend, "token_budget", budget)
    results = guard.score_batch(iter(TEXTS))
    for text, result in zip(TEXTS, results, strict=True):
        assert result.score == pytest.approx(guard.score(text).score, abs=1e-5)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=12))
def test_any_batch_gives_the_single_scores_in_order(guard: Guard, texts: list[str]) -> None:
    results = guard.score_batch(texts)
    assert len(results) == len(texts)
    for text, result in zip(texts, results, strict=True):
        assert result.score == pytest.approx(guard.score(text).score, abs=1e-5)


def test_a_batch_is_scored_in_micro_batches_under_the_budget(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard.load(bundle, threads=1)
    shapes: list[tuple[int, int]] = []
    run = guard.scorers[0].backend.run

    def record(input_ids: Any, attention_mask: Any) -> Any:
        shapes.append(input_ids.shape)
        return run(input_ids, attention_mask)

    monkeypatch.setattr(guard.scorers[0].backend, "run", record)
    guard.score_batch(["abcdefg", "a"] * 16, token_budget=64)
    assert shapes == [(16, 2), (8, 8), (8, 8)]  # a start token, then a token a byte
    guard.score_batch(["abcdefg", "a"] * 16)
    assert shapes[3:] == [(32, 8)]  # the backend's own budget holds them all


def test_eight_threads_give_the_serial_results(bundle: Path) -> None:
    guard = load_guard(bundle, threads=1)
    serial = [guard.score(text) for text in TEXTS]
    batch = guard.score_batch(TEXTS)
    start = threading.Barrier(8)

    def work(_: int) -> tuple[list[ScoreResult], list[ScoreResult]]:
        start.wait()
        return [guard.score(text) for text in TEXTS], guard.score_batch(TEXTS)

    with ThreadPoolExecutor(8) as pool:
        for threaded in pool.map(work, range(8)):
            assert threaded == (serial, batch)


# --- never a verdict without a score


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_raise_instead_of_passing_text_as_safe(
    tmp_path: Path, fill: float
) -> None:
    guard = Guard.load(make_bundle(tmp_path / "bundle", fill=fill))
    with pytest.raises(BackendError, match="not finite"):
        guard.score("hello")


def test_a_text_whose_score_is_not_finite_is_named_by_its_index(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    embedding = np.zeros((tokenizer.get_vocab_size(), WIDTH), np.float32)
    embedding[tokenizer.token_to_id("z")] = np.nan
    save_model(make_model(embedding, np.zeros((WIDTH, CLASSES), np.float32)), folder)
    seal(folder)
    guard = Guard.load(folder)
    assert guard.score("a").score == 0.5
    with pytest.raises(BackendError, match=r"texts\[1\]: .* is not finite"):
        guard.score_batch(["aaaaaaaaaaaaaaa", "z", "a"])


def test_a_text_of_which_the_tokenizer_makes_nothing_raises(own_bundle: Path) -> None:
    path = str(own_bundle / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.normalizer = tokenizers.normalizers.Strip()
    tokenizer.post_processor = tokenizers.processors.ByteLevel()
    tokenizer.save(path)
    seal(own_bundle)
    with pytest.raises(InputError, match=r"texts\[1\]: the tokenizer makes no token"):
        Guard.load(own_bundle).score_batch(["a", "", "b"])


def test_a_token_outside_the_embedding_is_an_error_with_onnx_runtimes_words(
    tmp_path: Path,
) -> None:
    folder = make_bundle(tmp_path / "bundle")
    save_model(make_model(np.ones((5, WIDTH), np.float32), np.ones((WIDTH, 2), np.float32)), folder)
    seal(folder)
    with pytest.raises(BackendError, match=r"1 texts by 6 tokens: .*indices"):
        Guard.load(folder).score("hello")
