"""The promise of streaming: however a text is cut, each feed scores as the whole text does."""

import json
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backbones import DECODERS, FAMILIES
from guards import load_guard
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.passes.table import row_of
from siren_export.sources.checkpoint import load_checkpoint
from streaming import BOUND, LIMIT, cut, neurons_of
from texts import CORPUS, TEXTS

_FRAGMENTS = st.sampled_from(
    [
        "bread", " bread", "ing", "Explain", " the", "\n", "\n\n", " ", "  ", "\t", "\r\n", ".",
        "<|im_start|>", "<|im_", "end|>", "[INST]", "[/IN", "ST]", "<s>", "</s>", "<<SYS>>", "<",
        "|>", "e", "\u0301", "👩", "\u200d", "👧", "🏽", "🇺", "🇳", "नम", "स्ते", "你好", "مرحبا",
        "\u202e", "ﬁ", "\x00", "\x1b[31m", "1234", "'ll", "<|reserved_token_0|>", "[SEP]", "",
    ]
)  # fmt: skip


PIECES = st.lists(
    st.one_of(_FRAGMENTS, st.text(max_size=4, alphabet=st.characters(exclude_categories=["Cs"]))),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("name", FAMILIES)
def test_hostile_texts_cut_anywhere_score_as_the_whole_so_far(guards, name):
    guard, streaming = guards(name)
    rng, depths = np.random.default_rng(0), []
    with streaming.stream() as stream:
        for text in TEXTS[FAMILIES.index(name) % 2 :: 2]:  # each in half of the families
            stream.reset()
            fed = ""
            for piece in cut(text[:60], rng):
                fed += piece
                result = stream.feed(piece)
                assert not result.slid
                assert result.score == pytest.approx(guard.score(fed).score, abs=BOUND), fed
                depths.append(result.rolled_back)
    assert max(depths) > 3  # else nothing was rolled back across many tokens


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=PIECES)
def test_any_pieces_score_as_the_whole_so_far(guards, name, pieces):
    guard, streaming = guards(name)
    with streaming.stream() as stream:
        for count, piece in enumerate(pieces, start=1):
            result = stream.feed(piece)
            if result.slid:
                return
            whole = guard.score("".join(pieces[:count]))
            assert result.score == pytest.approx(whole.score, abs=BOUND)
            assert result.is_harmful == (result.score >= whole.threshold)


@pytest.mark.parametrize("pooling", ["residual_mean", "mlp_mean"])
@pytest.mark.parametrize("layers", [(0,), (1, 2)], ids=str)
def test_heads_that_read_few_layers_stream_exactly(guards, pooling, layers):
    guard, streaming = guards("qwen3", layers=layers, pooling=pooling)
    fed = ""
    with streaming.stream() as stream:
        for piece in cut(CORPUS[2], np.random.default_rng(1)):
            fed += piece
            assert stream.feed(piece).score == pytest.approx(guard.score(fed).score, abs=BOUND)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_a_calibrated_guard_streams_at_its_temperature(export, tmp_path, name, classes):
    bundle = tmp_path / "calibrated"
    plain = export(name, max_length=LIMIT, classes=classes).bundle
    shutil.copytree(plain, bundle)
    manifest = json.loads((bundle / "guard.json").read_text())
    (bundle / "guard.json").write_text(json.dumps({**manifest, "temperature": 2.5}))

    guard, text = load_guard(bundle, threads=1), CORPUS[2]
    whole = guard.score(text).score
    assert whole != pytest.approx(load_guard(plain, threads=1).score(text).score, abs=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with load_guard(bundle, threads=1).stream() as stream:
            stream.feed(text[:20])
            assert stream.feed(text[20:]).score == pytest.approx(whole, abs=BOUND)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prompt", ["How do I bake bread? ", "<|im_start|>", "", "\n \n"])
def test_with_a_prompt_the_score_is_that_of_prompt_and_response(guards, name, prompt):
    guard, streaming = guards(name)
    fed = ""
    with streaming.stream(prompt) as stream:
        for piece in ["", "\n", " \n", "Mix", " fl", "our", "<|im_", "end|>", "  and water"]:
            fed += piece
            expected = guard.score(prompt=prompt, response=fed).score
            assert stream.feed(piece).score == pytest.approx(expected, abs=BOUND)


@pytest.mark.parametrize("name", FAMILIES)
def test_token_ids_score_as_the_text_they_are_of(guards, name):
    guard, streaming = guards(name)
    for text in CORPUS[:3]:
        ids = guard.scorers[0].tokenizer.encode(text).ids
        with streaming.stream() as stream:
            for start in range(0, len(ids), 5):
                result = stream.feed_tokens(np.array(ids[start : start + 5]))
            assert result.score == pytest.approx(guard.score(text).score, abs=BOUND)
            assert result.tokens == len(ids)


@pytest.mark.parametrize("name", DECODERS)
def test_the_score_of_every_token_is_that_of_the_prefix(guards, name):
    guard, streaming = guards(name)
    ids = guard.scorers[0].tokenizer.encode(CORPUS[0]).ids
    with streaming.stream() as stream:
        stream.feed_tokens(ids)
        scores = [score.score for score in stream.scores]
    expected = [
        guard.scorers[0]
        .backend.run(np.array([ids[: n + 1]]), np.ones((1, n + 1), np.int64))
        .score[0]
        for n in range(len(ids))
    ]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=BOUND)


@pytest.mark.parametrize("name", DECODERS)
def test_response_only_keeps_the_prompt_in_the_cache_and_out_of_the_mean(guards, name):
    guard, streaming = guards(name)
    prompt, response = "How do I bake bread?", "Mix flour, water and salt."
    encoded = guard.scorers[0].tokenizer.encode(f"{prompt}\n {response}")
    context = next(i for i, (_, end) in enumerate(encoded.offsets) if end > len(f"{prompt}\n "))
    pooled = neurons_of(streaming, encoded.ids)[context:].mean(axis=0)
    expected = streaming.scorers[0].stream_backend.head(pooled[None]).score[0]

    with streaming.stream(prompt, response_only=True) as stream:
        prompts = guard.score(prompt).score
        assert stream.feed(" ").score == pytest.approx(prompts, abs=BOUND)
        for piece in cut(response, np.random.default_rng(2)):
            result = stream.feed(piece)
        assert result.score == pytest.approx(expected, abs=BOUND)
        assert result.tokens == len(encoded.ids) - context == len(stream.scores)
        stream.reset()
        assert stream.feed(f" {response}").score == pytest.approx(expected, abs=BOUND)


def test_beyond_max_length_the_mean_runs_on_as_over_a_text_that_is_not_truncated(guards):
    _, streaming = guards("llama-llama3-rope", max_length=48)
    fed = ""
    with streaming.stream() as stream:
        for piece in cut((CORPUS[0] + CORPUS[1] + CORPUS[2])[:240], np.random.default_rng(3)):
            fed += piece
            result = stream.feed(piece)
            if result.slid:
                break
            ids = np.array([streaming.scorers[0].tokenizer.encode(fed.strip() or " ").ids])
            expected = streaming.scorers[0].backend.run(ids, np.ones_like(ids)).score[0]
            assert result.score == pytest.approx(expected, abs=BOUND)
    assert result.tokens > 100


@pytest.mark.parametrize("aggregation", ["window", "ema"])
def test_other_aggregations_read_the_last_tokens_only(guards, aggregation):
    """Against the neurons of every token, pooled by the definition."""
    _, streaming = guards("qwen3")
    text = CORPUS[2][:60]
    neurons = neurons_of(streaming, streaming.scorers[0].tokenizer.encode(text).ids)
    pooled = neurons[-4:].mean(axis=0)
    if aggregation == "ema":
        pooled = neurons[0]
        for row in neurons[1:]:
            pooled = pooled + 2 / 5 * (row - pooled)
    expected = streaming.scorers[0].stream_backend.head(pooled[None].astype(np.float32)).score[0]
    with streaming.stream(aggregation=aggregation, span=4) as stream:
        for piece in cut(text, np.random.default_rng(6)):
            result = stream.feed(piece)
    assert result.score == pytest.approx(expected, abs=BOUND)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_other_precisions_stream_within_their_bound_and_deterministically(guards, name, precision):
    guard, streaming = guards(name, precision)
    bound, runs = row_of("onnxruntime", precision).bound.value, []
    for _ in range(2):
        fed, scores = "", []
        with streaming.stream() as stream:
            for piece in cut(CORPUS[2], np.random.default_rng(4)):
                fed += piece
                scores.append(stream.feed(piece).score)
                assert scores[-1] == pytest.approx(guard.score(fed).score, abs=bound)
        runs.append(scores)
    assert runs[0] == runs[1]


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_a_decoder_without_a_streaming_graph_streams_exactly_by_reencoding(
    export, backbone_folder, tmp_path
):
    artifact = load_artifact(export("qwen3", max_length=LIMIT).artifact)
    bundle = tmp_path / "bundle"
    export_bundle(artifact, load_checkpoint(backbone_folder("qwen3")), bundle, stream=False)
    guard, fed = load_guard(bundle, threads=1), ""
    with guard.stream() as stream:
        for piece in ["How", " do", " I<|im_end|", ">", "", " ba", "ke"]:
            fed += piece
            assert stream.feed(piece).score == pytest.approx(guard.score(fed).score, abs=BOUND)


def test_a_guard_loaded_for_streaming_scores_as_one_that_is_not(export):
    bundle = export("llama-llama3-rope").bundle
    plain, streaming = (
        load_guard(bundle, threads=1),
        load_guard(bundle, threads=1, streaming=True),
    )
    a, b = (guard.score_batch(TEXTS, features=True) for guard in (plain, streaming))
    np.testing.assert_allclose([r.score for r in a], [r.score for r in b], rtol=0, atol=BOUND)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one.features, other.features, rtol=1e-4, atol=1e-4)
