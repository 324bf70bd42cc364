"""The promise of parity: a bundle scores as llm-siren does in float32, whatever the model."""

import itertools

import numpy as np
import pytest

from backbones import BACKBONES, FAMILIES
from guards import load_guard
from reference import Reference, load_reference
from siren_runtime import Guard
from texts import LONG_TEXTS, TEXTS

SCORE_BOUND = {"fp32": 1e-4, "fp16": 5e-3}
FEATURE_BOUND = 1e-4  # of max |difference| over max |reference|, for each text

POOLINGS = ("residual_mean", "mlp_mean")
SUBSETS = ((0,), (0, 1), (2,), (3,), (3, 0, 1))


def assert_agrees(
    guard: Guard, reference: Reference, texts: list[str], precision: str = "fp32"
) -> None:
    results = guard.score_batch(texts, features=True)
    expected = reference.score_batch(texts)
    np.testing.assert_allclose(
        [result.score for result in results],
        [result.score for result in expected],
        rtol=0,
        atol=SCORE_BOUND[precision],
    )
    if precision == "fp32":
        features = reference.features.numpy()
        found = np.stack([result.features for result in results])
        assert found.dtype == np.float32
        difference = np.abs(found - features).max(axis=1) / np.abs(features).max(axis=1)
        assert difference.max() <= FEATURE_BOUND, f"text {difference.argmax()}: {difference.max()}"


@pytest.mark.parametrize(
    ("pooling", "attention"), [("residual_mean", "sdpa"), ("mlp_mean", "eager")]
)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_agrees_with_both_attention_implementations(
    export, name, pooling, attention
):
    exported = export(name, pooling=pooling)
    reference = load_reference(exported.artifact, attention=attention)
    if reference._backbone._supports_sdpa:
        assert reference._backbone.config._attn_implementation == attention
    assert_agrees(load_guard(exported.bundle, threads=1), reference, TEXTS)


@pytest.mark.parametrize("name", FAMILIES)
def test_random_models_spread_their_scores_so_that_agreement_means_something(export, name):
    scores = [r.score for r in load_reference(export(name).artifact).score_batch(TEXTS)]
    assert np.std(scores) > 0.1
    assert min(scores) < 0.3
    assert max(scores) > 0.7


@pytest.mark.parametrize(
    ("name", "layers", "pooling"),
    [
        (name, layers, POOLINGS[(family + subset) % 2])
        for family, name in enumerate(FAMILIES)
        for subset, layers in enumerate(SUBSETS)
    ],
    ids=str,
)
def test_any_subset_of_layers_agrees(export, name, layers, pooling):
    exported = export(name, pooling=pooling, layers=layers)
    guard = load_guard(exported.bundle, threads=1)
    assert guard.manifest.backbone.blocks_kept == max(layers) + 1
    assert_agrees(guard, load_reference(exported.artifact), TEXTS[:24])


@pytest.mark.parametrize("size", [1, 2, 17, 64])
@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_ragged_batches_of_any_size_agree(export, name, size):
    exported = export(name)
    guard, reference = (
        load_guard(exported.bundle, threads=1),
        load_reference(exported.artifact),
    )
    for seed in range(3):
        texts = [TEXTS[i] for i in np.random.default_rng(seed).permutation(len(TEXTS))[:size]]
        assert_agrees(guard, reference, texts)


@pytest.mark.parametrize("name", FAMILIES)
def test_very_long_texts_agree(export, name):
    exported = export(name)
    guard = load_guard(exported.bundle, threads=1)
    assert_agrees(guard, load_reference(exported.artifact), LONG_TEXTS)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_scores_the_same_alone_and_in_a_batch(export, name):
    guard = load_guard(export(name).bundle, threads=1)
    alone = [guard.score(text).score for text in TEXTS]
    together = [result.score for result in guard.score_batch(TEXTS)]
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_prompt_and_response_are_joined_as_the_reference_joins_them(export, name):
    exported = export(name)
    guard, reference = (
        load_guard(exported.bundle),
        load_reference(exported.artifact),
    )
    for prompt, response in [
        ("How do I bake bread?", "Mix flour and water."),
        ("How do I bake bread?", None),
        ("", "Mix flour and water."),
        ("ends in a newline\n\n", "\n\nbegins with one"),
        ("<|im_start|>", " "),
        ("", ""),
    ]:
        expected = reference.score(prompt=prompt, response=response).score
        found = guard.score(prompt=prompt, response=response).score
        assert found == pytest.approx(expected, abs=SCORE_BOUND["fp32"])


# The least that leaves more than the special tokens, and all that the tiny backbones take.
@pytest.mark.parametrize(
    ("name", "max_length"),
    [
        ("qwen3", 1),
        ("llama", 2),
        ("mistral", 3),
        ("bert", 3),
        ("llama-llama3-rope", 128),
        ("bert", 128),
    ],
)
def test_any_token_limit_agrees(export, name, max_length):
    exported = export(name, max_length=max_length)
    guard = load_guard(exported.bundle, threads=1)
    assert_agrees(guard, load_reference(exported.artifact), TEXTS)


@pytest.mark.parametrize(
    "head",
    [
        {"hidden_dims": ()},
        {"hidden_dims": (8,), "dropout_rates": (0.0,)},
        {"hidden_dims": (8,), "dropout_rates": (0.5,)},
        {"hidden_dims": (16, 8, 4), "dropout_rates": (0.0, 0.2, 0.0)},
        {"classes": 3},
        {"classes": 5, "hidden_dims": ()},
        {"channels": 1, "layers": (1,)},
        {"channels": 64},
    ],
    ids=str,
)
def test_any_shape_of_head_agrees(export, head):
    exported = export("qwen3", **head)
    guard = load_guard(exported.bundle, threads=1)
    assert_agrees(guard, load_reference(exported.artifact), TEXTS)


@pytest.mark.parametrize(("name", "pooling"), zip(BACKBONES, itertools.cycle(POOLINGS)))
def test_float16_bundles_stay_within_their_bound(export, name, pooling):
    exported = export(name, "fp16", pooling=pooling)
    reference = load_reference(exported.artifact)
    assert_agrees(load_guard(exported.bundle, threads=1), reference, TEXTS, "fp16")


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta"])
def test_padding_tokens_that_a_text_holds_take_no_position(export, name):
    exported = export(name)
    guard = load_guard(exported.bundle, threads=1)
    texts = ["padding <pad> in a <pad><pad> text, <mask> too", "<pad> first", "a short one"]
    ids = guard.scorers[0].tokenizer.encode(texts[0]).ids
    assert ids.count(1) == 3  # the padding token of the tokenizer, and of "roberta"
    assert_agrees(guard, load_reference(exported.artifact), texts)
