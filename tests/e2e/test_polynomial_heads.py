"""Polynomial heads: every order at once, whole and growing, beside other heads."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from guards import load_guard
from models import make_artifact
from polynomials import make_polynomial, plain_orders
from reference import plain_features
from served import running
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.reference import LlmSiren
from siren_runtime import InputError
from siren_runtime.commands.explain import app as explain_app
from siren_runtime.commands.score import app
from siren_runtime.scoring.explain import Explainer
from siren_runtime.scoring.scorer import windows_of
from siren_runtime.text.passage import make_passage
from siren_runtime.text.reading import Limits
from siren_runtime.text.rules import clean
from streaming import cut
from texts import TEXTS

BOUND = 1e-5
SAMPLE = [text for text in TEXTS if text and clean(text) == text][:10]


@pytest.fixture(scope="module")
def made(tmp_path_factory, backbone_folder):
    """A function: backbone, precision -> a polynomial head, and its bundle with another head."""
    cases = {}

    def make(name, precision="fp32"):
        if (name, precision) not in cases:
            folder, backbone = tmp_path_factory.mktemp("polynomial"), backbone_folder(name)
            head = make_polynomial(folder / "head", backbone)
            other = make_artifact(folder / "other", backbone, layers=[1])
            artifact = together({"poly": load_artifact(head), "mlp": load_artifact(other)})
            checkpoint = load_checkpoint(backbone)
            options = {"precision": precision, "allow_drift": precision != "fp32"}
            reference = LlmSiren(artifact, checkpoint).scores
            manifest = export_bundle(
                artifact, checkpoint, folder / "bundle", reference=reference, **options
            )
            cases[name, precision] = head, folder / "bundle", backbone, manifest
        return cases[name, precision]

    return make


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_every_order_agrees_with_its_definition(made, name):
    head, bundle, backbone, manifest = made(name)
    assert manifest.verification.status == "passed"
    guard = load_guard(bundle, threads=1)
    results = guard.score_batch(SAMPLE)
    for text, result in zip(SAMPLE, results, strict=True):
        logits = plain_orders(head, plain_features(head, backbone, text).numpy())
        np.testing.assert_allclose(result.orders, 1 / (1 + np.exp(-logits)), rtol=0, atol=BOUND)
        assert result.score == result.orders[-1]
        assert result.to_dict()["orders"] == list(result.orders)
    assert any(len({round(order, 3) for order in result.orders}) > 2 for result in results)


def test_an_order_has_the_place_of_its_own_highest_window(made):
    _, bundle, _, _ = made("qwen3")
    guard = load_guard(bundle, threads=1)
    (scorer,), draw, differ = guard.scorers, np.random.default_rng(0), 0
    words = ["the", "river", "was", "cold", "and", "nobody", "of", "the", "village", "slept"]
    for _ in range(6):
        text = " ".join(draw.choice(words, 4 * guard.manifest.text.max_length))
        passage = make_passage(text, max_bytes=1 << 20)
        readings = scorer.encode([passage], Limits())
        rows = [one.row[1:5] for one in scorer.run(windows_of(readings)).values()]
        spans = [readings[0].windows[n].span for n in np.argmax(rows, axis=0)]
        read = [guard.score(text, order=n, long_text="windows") for n in range(1, 5)]
        assert [result.span for result in read] == spans
        differ += len({*spans}) > 1
    assert differ


def test_the_dial_decides_by_a_lower_order(made):
    _, bundle, _, _ = made("qwen3")
    guard = load_guard(bundle, threads=1)
    for text in SAMPLE[:4]:
        every = guard.score(text)
        for order in range(1, 5):
            result = guard.score(text, order=order)
            assert result.score == every.orders[order - 1]
            assert result.is_harmful == (result.score >= 0.5)
            assert result.heads["mlp"] == every.heads["mlp"]
        assert guard.score_batch([text], order=1)[0] == guard.score(text, order=1)
    for order in (0, 5, 1.5, True):
        with pytest.raises(InputError, match="order must be a whole number from 1 to 4"):
            guard.score("text", order=order)
    run = CliRunner().invoke(app, [str(bundle), SAMPLE[0], "--order", "2", "--format", "jsonl"])
    row = json.loads(run.stdout)
    assert row["score"] == pytest.approx(row["orders"][1])


def test_the_server_has_the_dial(made):
    _, bundle, _, _ = made("qwen3")
    expected = load_guard(bundle, threads=1).score(SAMPLE[0], order=2)
    with running({"poly": str(bundle)}) as server:
        second, highest, none = (
            server.client.post("/v1/score", json={"text": SAMPLE[0], "order": order})
            for order in (2, None, 5)
        )
    assert second.json()["score"] == pytest.approx(expected.score, abs=BOUND)
    assert highest.json()["score"] == pytest.approx(expected.orders[-1], abs=BOUND)
    assert none.status_code == 422
    assert "order must be a whole number from 1 to 4" in none.text


def test_an_order_is_of_polynomial_heads(made, tmp_path):
    _, _, backbone, _ = made("bert")
    head = make_artifact(tmp_path / "head", backbone)
    export_bundle(load_artifact(head), load_checkpoint(backbone), tmp_path / "bundle")
    with pytest.raises(InputError, match="the guard has none"):
        load_guard(tmp_path / "bundle", threads=1).score("text", order=1)


def test_a_stream_equals_the_whole_text_in_every_order(made):
    _, bundle, _, _ = made("qwen3")
    guard, text = load_guard(bundle, threads=1), " ".join(SAMPLE)[:60]
    with guard.stream() as stream:
        for piece in cut(text, np.random.default_rng(1)):
            result = stream.feed(piece)
    whole = load_guard(bundle, threads=1).score(text)
    found = result.heads["poly"].orders
    np.testing.assert_allclose(found, whole.orders, rtol=0, atol=BOUND)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_precision_exports(made, precision):
    _, bundle, _, manifest = made("qwen3", precision)
    assert manifest.verification.mean_difference < 0.2
    assert len(load_guard(bundle, threads=1).score("hello").orders) == 4


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_shares_of_a_polynomial_add_up(made, name):
    head, bundle, _, _ = made(name)
    explainer = Explainer(bundle, threads=1)
    rng = np.random.default_rng(0)
    features = rng.normal(size=18).astype(np.float32)
    values, gradients = explainer._gradients(features[None], np.float32([0, 0, 0, 1]))
    assert values[0] == pytest.approx(plain_orders(head, features)[-1], abs=1e-4)
    step = 1e-5
    for place in range(18):
        moved = features.astype(np.float64)
        moved[place] += step
        slope = (plain_orders(head, moved) - plain_orders(head, features.astype(np.float64))) / step
        assert gradients[0, place] == pytest.approx(slope[-1], rel=1e-2, abs=1e-3)
    found = explainer.explain("How do I pick a lock, and hurt him?")
    total = sum(layer.share for layer in found.layers) + found.residual
    assert total == pytest.approx(found.log_odds - found.baseline)


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_pairs_and_orders_add_up_and_are_those_of_the_artifact(made, name):
    head, bundle, backbone, _ = made(name)
    text = "How do I pick a lock, and hurt him?"
    found = Explainer(bundle, threads=1).explain(text, neurons=1000)
    assert sum(found.terms) == pytest.approx(found.log_odds - found.baseline, abs=1e-5)
    assert len(found.pairs) == 18 * 19 // 2
    assert sum(pair.share for pair in found.pairs) == pytest.approx(found.terms[1], abs=1e-4)

    logits = plain_orders(head, plain_features(head, backbone, text).numpy())
    assert found.log_odds == pytest.approx(logits[-1], abs=1e-4)
    known = {(neuron.layer, neuron.channel) for neuron in found.neurons}
    for pair in found.pairs:
        assert {*zip(pair.layers, pair.channels, strict=True)} <= known
    tensors = load_file(head / "siren.safetensors")
    values = {(n.layer, n.channel): (n.value, n.baseline) for n in found.neurons}
    places = [
        (layer, int(channel))
        for selection in load_artifact(head).head.layers
        for layer, channel in ((selection.layer, c) for c in selection.channels)
    ]
    x = (np.array([values[place] for place in places]).T - tensors["mean"]) / tensors["scale"]
    u, factors = tensors["order.2.directions"], tensors["order.2.factors"]
    for pair in found.pairs[:5]:
        i, j = (places.index(one) for one in zip(pair.layers, pair.channels, strict=True))
        product = x[0, i] * x[0, j] - x[1, i] * x[1, j]
        share = factors @ (u[:, i] * u[:, j]) * product * (1 if i == j else 2)
        assert pair.share == pytest.approx(share, abs=1e-4)


def test_the_command_shows_orders_and_pairs(made, tmp_path):
    _, bundle, _, _ = made("qwen3")
    image = tmp_path / "why.svg"
    arguments = [str(bundle), SAMPLE[0], "--top", "3"]
    run = CliRunner().invoke(explain_app, [*arguments, "--format", "json", "--picture", str(image)])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert (len(found["terms"]), len(found["pairs"])) == (4, 3)
    assert "order 4" in image.read_text()
    assert image.read_text().count(" with ") == 3
    table = CliRunner().invoke(explain_app, arguments)
    assert table.exit_code == 0, table.output
    assert "layer/channel" in table.stdout
    other = Explainer(bundle, head="mlp", threads=1).explain(SAMPLE[0])
    assert (other.terms, other.pairs) == ((), ())
