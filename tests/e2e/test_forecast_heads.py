"""Forecast heads: a score of what comes, whole and growing, and smoothed over a stream's tokens."""

import json
import shutil
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from guards import load_guard
from models import make_artifact, make_forecast
from reference import plain_logits
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.reference import LlmSiren
from siren_runtime.commands.explain_picture import picture
from siren_runtime.scoring.explain import Explainer
from siren_runtime.text.rules import clean
from streaming import cut
from texts import CORPUS, TEXTS

BOUND = 1e-5
SAMPLE = [text for text in TEXTS if text and clean(text) == text][:10]
SPAN = 5  # tokens of the smoothing
WEIGHT = 2 / (SPAN + 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory, backbone_folder):
    """A function: backbone, precision, hidden sizes -> a forecast head, its bundle with a plain
    head, and the backbone.
    """
    cases = {}

    def make(name, precision="fp32", hidden=()):
        key = name, precision, hidden
        if key not in cases:
            folder, backbone = tmp_path_factory.mktemp("forecast"), backbone_folder(name)
            head = make_forecast(folder / "head", backbone, hidden_dims=hidden)
            plain = make_artifact(folder / "plain", backbone, layers=[1])
            artifact = together({"ahead": load_artifact(head), "plain": load_artifact(plain)})
            checkpoint = load_checkpoint(backbone)
            reference = LlmSiren(artifact, checkpoint).scores
            options = {"precision": precision, "allow_drift": precision != "fp32"}
            manifest = export_bundle(
                artifact, checkpoint, folder / "bundle", reference=reference, **options
            )
            cases[key] = head, folder / "bundle", backbone, manifest
        return cases[key]

    return make


def smoothed(bundle, folder, **smoothing):
    """A copy of a bundle whose heads smooth over so many tokens."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "guard.json").read_text())
    manifest["smoothing"] = smoothing.get("ahead", 1)
    manifest["decisions"]["plain"]["smoothing"] = smoothing.get("plain", 1)
    (folder / "guard.json").write_text(json.dumps(manifest))
    return folder


def averages(scores):
    """The exponential moving average at each token."""
    found = [scores[0]]
    for score in scores[1:]:
        found.append(found[-1] + WEIGHT * (score - found[-1]))
    return found


def prefix_scores(guard, text):
    """Each head's score of the prefix that ends with each token."""
    ids = guard.scorers[0].tokenizer.encode(text).ids
    found = {name: [] for name in guard.heads}
    with guard.stream() as stream:
        for token in ids:
            for name, head in stream.feed_tokens([token]).heads.items():
                found[name].append(head.score)
    return found


@pytest.mark.parametrize("hidden", [(), (8,)], ids=["linear", "mlp"])
@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_the_score_is_that_of_plain_pytorch(made, name, hidden):
    head, bundle, backbone, manifest = made(name, hidden=hidden)
    assert manifest.verification.status == "passed"
    assert manifest.heads["ahead"].kind == "forecast"
    guard = load_guard(bundle, threads=1)
    scores = [result.score for result in guard.score_batch(SAMPLE)]
    logits = [float(plain_logits(head, backbone, text)[0]) for text in SAMPLE]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-np.array(logits))), rtol=0, atol=BOUND)
    assert np.ptp(scores) > 0.1


@pytest.mark.parametrize("hidden", [(), (8,)], ids=["linear", "mlp"])
def test_a_stream_equals_the_whole_text(made, hidden):
    _, bundle, _, _ = made("qwen3", hidden=hidden)
    guard, text = load_guard(bundle, threads=1), CORPUS[2][:80]
    whole, fed = load_guard(bundle, threads=1), ""
    with guard.stream() as stream:
        for piece in cut(text, np.random.default_rng(1)):
            fed += piece
            assert stream.feed(piece).score == pytest.approx(whole.score(fed).score, abs=BOUND)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_precision_exports(made, precision):
    _, bundle, _, manifest = made("qwen3", precision)
    assert manifest.verification.mean_difference < 0.2
    assert 0 < load_guard(bundle, threads=1).score("hello").score < 1


def test_a_smoothed_stream_is_the_moving_average_of_its_tokens_scores(made, tmp_path):
    _, bundle, _, _ = made("qwen3")
    text = CORPUS[2][:120]
    raw = prefix_scores(load_guard(bundle, threads=1), text)
    guard = load_guard(smoothed(bundle, tmp_path / "b", ahead=SPAN), threads=1)
    found = prefix_scores(guard, text)
    np.testing.assert_allclose(found["ahead"], averages(raw["ahead"]), rtol=0, atol=BOUND)
    np.testing.assert_allclose(found["plain"], raw["plain"], rtol=0, atol=BOUND)
    both = load_guard(smoothed(bundle, tmp_path / "c", ahead=SPAN, plain=SPAN), threads=1)
    found = prefix_scores(both, text)
    np.testing.assert_allclose(found["plain"], averages(raw["plain"]), rtol=0, atol=BOUND)
    assert guard.score(text).score == pytest.approx(raw["ahead"][-1], abs=BOUND)


def test_a_smoothed_stream_does_not_depend_on_how_it_is_cut(made, tmp_path):
    _, bundle, _, _ = made("qwen3")
    guard = load_guard(smoothed(bundle, tmp_path / "b", ahead=SPAN, plain=SPAN), threads=1)
    text, taken_back = CORPUS[2][:120], 0
    with guard.stream() as stream:
        whole = stream.feed(text)
    for seed in range(3):
        with guard.stream() as stream:
            for piece in cut(text, np.random.default_rng(seed)):
                result = stream.feed(piece)
                taken_back += result.rolled_back
                assert result.score == pytest.approx(stream.scores[-1].score)
        for name in guard.heads:
            expected = whole.heads[name].score
            assert result.heads[name].score == pytest.approx(expected, abs=BOUND)
    assert taken_back > 3


def test_the_prompt_is_no_part_of_the_average_where_it_does_not_count(made, tmp_path):
    _, bundle, _, _ = made("qwen3")
    guard = load_guard(smoothed(bundle, tmp_path / "b", ahead=SPAN), threads=1)
    with load_guard(bundle, threads=1).stream("How?", response_only=True) as stream:
        stream.feed("Mix flour and water")
        expected = averages([token.score for token in stream.scores])
    with guard.stream("How?", response_only=True) as stream:
        for piece in ("Mix ", "flour", " and water"):
            result = stream.feed(piece)
        np.testing.assert_allclose(
            [token.score for token in stream.scores], expected, rtol=0, atol=BOUND
        )
    assert result.score == pytest.approx(expected[-1], abs=BOUND)


def test_the_average_goes_on_where_text_slides_out(made, tmp_path):
    _, bundle, _, _ = made("qwen3")
    guard = load_guard(smoothed(bundle, tmp_path / "b", ahead=4096), threads=1)
    raw = load_guard(bundle, threads=1)
    ids = guard.scorers[0].tokenizer.encode(CORPUS[2]).ids[:20]
    with (
        guard.streams(max_tokens=8) as averaged,
        raw.streams(max_tokens=8) as plain,
        averaged.open() as stream,
        plain.open() as beside,
    ):
        first = stream.feed_tokens(ids[:1]).score
        beside.feed_tokens(ids[:1])
        farthest = 0.0
        for token in ids[1:]:
            ((result,), (own,)) = (
                streams.feed([(one, [token])])
                for streams, one in ((averaged, stream), (plain, beside))
            )
            farthest = max(farthest, abs(own.score - first))
    assert result.slid
    assert farthest > 0.02  # an average that began anew would have gone there
    assert abs(result.score - first) < 0.02


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_a_stream_that_reads_anew_is_smoothed_too(made, tmp_path, name):
    _, bundle, _, _ = made(name)
    folder = smoothed(bundle, tmp_path / "b", ahead=SPAN)
    guard = load_guard(folder, threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with guard.stream() as stream:
            first = stream.feed("The bread ").score
            count = len(stream.scores)
            last = stream.feed("is in the oven now")
            tokens = [token.score for token in stream.scores]
        with load_guard(bundle, threads=1).stream() as plain:
            plain.feed("The bread is in the oven now")
            raw = [token.score for token in plain.scores]
    assert min(first, *raw) <= last.score <= max(first, *raw)
    assert tokens[-1] == pytest.approx(last.score)
    assert len(tokens) > count


def test_the_verdict_goes_by_the_average(made, tmp_path):
    _, bundle, _, _ = made("qwen3")
    text = CORPUS[2][:120]
    raw = prefix_scores(load_guard(bundle, threads=1), text)["ahead"]
    mean = averages(raw)
    place = int(np.argmax(np.abs(np.array(raw) - mean)))
    threshold = (raw[place] + mean[place]) / 2
    guard = load_guard(smoothed(bundle, tmp_path / "b", ahead=SPAN), threads=1)
    ids = guard.scorers[0].tokenizer.encode(text).ids
    with guard.stream(threshold=threshold) as stream:
        result = stream.feed_tokens(ids[: place + 1])
    assert result.is_harmful == (mean[place] >= threshold)
    assert result.is_harmful != (raw[place] >= threshold)


@pytest.mark.parametrize("hidden", [(), (8,)], ids=["linear", "mlp"])
def test_shares_of_a_forecast_add_up(made, hidden):
    _, bundle, _, _ = made("qwen3", hidden=hidden)
    found = Explainer(bundle, threads=1).explain("How do I pick a lock, and hurt him?")
    total = sum(layer.share for layer in found.layers) + found.residual
    assert total == pytest.approx(found.log_odds - found.baseline)
    score = load_guard(bundle, threads=1).score("How do I pick a lock, and hurt him?").score
    assert found.log_odds == pytest.approx(np.log(score / (1 - score)), abs=1e-3)
    drawn = ElementTree.fromstring(picture(found)).itertext()
    assert f"harm by {found.head}: {found.score:.3f}" in "".join(drawn)
