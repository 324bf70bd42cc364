"""Why a text scores as it does: shares that add up, and that are the gradients' own."""

import json
import os
import shutil
import threading
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from models import LABELS, make_artifact, make_labels
from siren_command import TIMEOUT_S, siren, start
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import BundleError, Guard, InputError, InterruptedCall
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.commands.explain import app
from siren_runtime.commands.explain_picture import picture
from siren_runtime.scoring.explain import Explainer
from tiny_bundle import edit_manifest

TEXT = "How do I pick the lock of my neighbour's door, and hurt him?"


@pytest.fixture(scope="module")
def made(tmp_path_factory, backbone_folder):
    """A function: backbone -> folders of an MLP, a linear head and labels, and their bundle."""
    cases = {}

    def make(name):
        if name not in cases:
            folder, backbone = tmp_path_factory.mktemp("explain"), backbone_folder(name)
            heads = {
                "harm": make_artifact(folder / "harm", backbone, layers=[0, 2]),
                "linear": make_artifact(
                    folder / "linear", backbone, layers=[1, 3], hidden_dims=(), seed=5
                ),
                "kinds": make_labels(folder / "kinds", backbone, layers=[0, 1]),
            }
            artifact = together({n: load_artifact(path) for n, path in heads.items()})
            export_bundle(artifact, load_checkpoint(backbone), folder / "bundle")
            cases[name] = heads, folder / "bundle"
        return cases[name]

    return make


@pytest.mark.parametrize("name", ["qwen3", "bert"])
@pytest.mark.parametrize("head", ["harm", "linear", "kinds"])
def test_shares_add_up_to_the_difference_of_the_outputs(made, name, head):
    _, bundle = made(name)
    found = Explainer(bundle, head=head, threads=1).explain(TEXT)
    guard = Guard.load(bundle, threads=1)
    expected = guard.score(TEXT).heads[head]
    assert found.score == pytest.approx(expected.score, abs=1e-5)
    difference = found.log_odds - found.baseline
    assert sum(layer.share for layer in found.layers) == pytest.approx(
        difference, abs=2e-3 * max(abs(difference), 0.5) + 1e-6
    )
    assert sum(layer.share for layer in found.layers) + found.residual == pytest.approx(difference)
    if name == "qwen3":
        assert found.parts_by == "attribution"
        assert sum(part.share for part in found.parts) == pytest.approx(
            sum(layer.share for layer in found.layers), abs=1e-4
        )
    else:
        assert found.parts_by == "omission"
    assert found.steps == 1 or head != "linear"
    assert found.category == (
        max(expected.categories, key=expected.categories.get) if head == "kinds" else ""
    )
    assert f"by {head}: {found.score:.3f}" in "".join(drawn_text(found))


def test_the_likeliest_label_is_the_one_that_the_guard_finds(made, tmp_path):
    """Each label has its own temperature, so the highest logit may not be the likeliest."""
    _, bundle = made("qwen3")
    for cold in LABELS:
        labels = [{"name": n, "threshold": 0.5, "temperature": 0.05 if n == cold else 20.0}
                  for n in LABELS]  # fmt: skip
        folder = shutil.copytree(bundle, tmp_path / cold)
        edit_manifest(
            folder, lambda m, labels=labels: m["decisions"]["kinds"].update(labels=labels)
        )
        found = Explainer(folder, head="kinds", threads=1).explain(TEXT)
        expected = Guard.load(folder, threads=1).score(TEXT).heads["kinds"]
        assert found.category == max(expected.categories, key=expected.categories.get)
        assert found.score == pytest.approx(expected.score, abs=1e-5)


def drawn_text(found):
    """What stands in the picture of an explanation, which is well-formed."""
    return ElementTree.fromstring(picture(found)).itertext()


@pytest.mark.parametrize("name", ["qwen3", "bert"])
@pytest.mark.parametrize("head", ["harm", "linear"])
def test_gradients_are_those_of_torch(made, name, head):
    heads, bundle = made(name)
    explainer = Explainer(bundle, head=head, threads=1)
    tensors = load_file(heads[head] / "siren.safetensors")
    features = np.random.default_rng(0).normal(size=(5, explainer._spec.features))
    x = torch.tensor(features, dtype=torch.float32, requires_grad=True)
    y = x
    for place, slot in enumerate(sorted({int(n.split(".")[1]) for n in tensors})):
        y = torch.relu(y) if place else y
        y = y @ tensors[f"network.{slot}.weight"].T + tensors[f"network.{slot}.bias"]
    value = y[:, 1] - y[:, 0]
    value.sum().backward()
    found, gradients = explainer._gradients(x.detach().numpy(), np.array([-1, 1], np.float32))
    np.testing.assert_allclose(found, value.detach(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradients, x.grad, rtol=1e-4, atol=1e-4)


def test_neurons_are_named_as_the_artifact_has_them(made):
    heads, bundle = made("qwen3")
    config = json.loads((heads["linear"] / "siren_config.json").read_text())["siren_module"]
    found = Explainer(bundle, head="linear", threads=1).explain(TEXT, neurons=1000)
    expected = {
        (layer, channel)
        for layer in config["selected_layers"]
        for channel in config["selected_neurons_dict"][f"layer{layer}_residual_mean"]
    }
    assert {(neuron.layer, neuron.channel) for neuron in found.neurons} == expected
    for layer in found.layers:
        own = [neuron.share for neuron in found.neurons if neuron.layer == layer.layer]
        assert layer.share == pytest.approx(sum(own), abs=1e-6)
        assert layer.weight == pytest.approx(config["layer_weights"].get(str(layer.layer), 1.0))


def test_a_neutral_text_explains_itself_as_nothing(made):
    _, bundle = made("qwen3")
    text = "This is a sentence about nothing in particular."
    found = Explainer(bundle, threads=1, neutral=text).explain(text)
    assert found.log_odds == pytest.approx(found.baseline, abs=1e-5)
    assert max(abs(part.share) for part in found.parts) < 1e-4


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_a_long_text_is_explained_by_the_window_that_its_score_is_of(made, name):
    _, bundle = made(name)
    explainer, guard = Explainer(bundle, threads=1), Guard.load(bundle, threads=1)
    words = f"{TEXT} I never said so, of course.".split()
    for seed in range(12):
        chosen = np.random.default_rng(seed).choice(words, 90).tolist()
        prompt, response = " ".join(chosen[:8]), " ".join(chosen[8:])
        for given in ({"text": response}, {"prompt": prompt, "response": response}):
            result, found = guard.score(**given), explainer.explain(**given)
            assert found.span == result.span
            assert found.score == pytest.approx(result.score, abs=1e-5)
            assert all(found.text[slice(*part.span)] == part.text for part in found.parts)
            part = response if "text" in given else f"{prompt}\n{response}"
            part = part[slice(*found.span)]
            assert found.text.endswith(part)
            if found.text != part:
                assert found.text.removesuffix(part).strip()
                assert prompt.endswith(found.text.removesuffix(f"\n{part}").strip())


def deciding(bundle, head, spans, count=16):
    """What a guard says of texts by a head, and what is explained of each."""
    guard = Guard.load(bundle, threads=1, spans=spans)
    explainer = Explainer(bundle, head=head, threads=1, spans=spans)
    words = f"{TEXT} I never said so. Of course, it was the baker!".split()
    for seed in range(count):
        random = np.random.default_rng(seed)
        chosen = random.choice(words, random.integers(6, 90) if seed % 4 else 2).tolist()
        text, before = " ".join(chosen), max(len(chosen) // 3, 1)
        pair = {"prompt": " ".join(chosen[:before]), "response": " ".join(chosen[before:])}
        for given in ({"text": text}, pair):
            yield (
                "\n".join(given.values()),
                guard.score(**given).heads[head],
                explainer.explain(**given),
            )


@pytest.mark.parametrize("name", ["qwen3", "bert"])
@pytest.mark.parametrize("head", ["harm", "linear", "kinds"])
def test_the_span_that_decides_is_what_is_explained(made, name, head):
    _, bundle = made(name)
    decided = []
    for text, result, found in deciding(bundle, head, [8, 16]):
        by_span = result.risk > result.score
        score, size, span = result.score, None, result.span
        if by_span:
            top = result.spans[0]
            score, size, span = top.score, top.tokens, top.span
            assert found.text == text[slice(*span)]
            assert f"decided by a span of {size} tokens at" in "".join(drawn_text(found))
        assert (found.score, found.size, found.span) == (pytest.approx(score, abs=1e-5), size, span)
        assert all(found.text[slice(*part.span)] == part.text for part in found.parts)
        shares = sum(layer.share for layer in found.layers)
        assert shares + found.residual == pytest.approx(found.log_odds - found.baseline)
        if name == "qwen3":
            assert sum(part.share for part in found.parts) == pytest.approx(shares, abs=1e-3)
        decided.append(by_span)
    assert {*decided} == {True, False}


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_spans_are_explained_where_the_bundle_has_thresholds_for_them(made, name, tmp_path):
    folder = shutil.copytree(made(name)[1], tmp_path / "bundle")
    spans = [{"tokens": 8, "threshold": 0.3}]
    edit_manifest(folder, lambda m: m.update(spans=spans))
    assert {found.size for _, _, found in deciding(folder, "harm", None, 6)} == {None, 8}
    assert {found.size for _, _, found in deciding(folder, "linear", None, 6)} == {None}
    assert {found.size for _, _, found in deciding(folder, "harm", False, 6)} == {None}


def test_a_text_that_guards_refuse_as_unreadable_is_explained_as_such(made):
    _, bundle = made("qwen3")
    text = " ".join("\u200b".join(word) for word in ("these", "are", "words", "of", "text"))
    found = Explainer(bundle, threads=1).explain(text)
    result = Guard.load(bundle, threads=1, unreadable="review").score(text)
    assert result.is_harmful is None
    assert (found.is_harmful, found.unknown) == (None, result.unknown)
    said = f"unreadable: {result.unknown:.0%} of the text is unknown"
    assert said in "".join(drawn_text(found))
    table = CliRunner().invoke(app, [str(bundle), text])
    assert said in " ".join(table.stdout.split())
    read = Explainer(bundle, threads=1).explain(TEXT)
    assert read.is_harmful is not None
    assert "unreadable" not in "".join(drawn_text(read))


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_a_category_is_explained_where_it_is_the_likeliest(made, name):
    _, bundle = made(name)
    explainer = Explainer(bundle, head="kinds", threads=1)
    guard = Guard.load(bundle, threads=1)
    for seed in range(6):
        text = " ".join(np.random.default_rng(seed).choice(TEXT.split(), 90))
        for category, probability in guard.score(text).categories.items():
            found = explainer.explain(text, category=category)
            assert found.score == pytest.approx(probability, abs=1e-5)


def test_the_score_of_several_classes_is_that_of_the_guard(tmp_path, backbone_folder):
    backbone = backbone_folder("qwen3")
    head = make_artifact(tmp_path / "head", backbone, classes=3)
    export_bundle(load_artifact(head), load_checkpoint(backbone), tmp_path / "bundle")
    explainer = Explainer(tmp_path / "bundle", threads=1)
    result = Guard.load(tmp_path / "bundle", threads=1).score(TEXT)
    assert explainer.explain(TEXT).score == pytest.approx(result.score, abs=1e-5)
    for category, probability in result.categories.items():
        found = explainer.explain(TEXT, category=category)
        assert found.score == pytest.approx(probability, abs=1e-5)


def test_the_command_gives_a_table_json_and_a_picture(made, tmp_path):
    _, bundle = made("qwen3")
    image = tmp_path / "why.svg"
    arguments = [str(bundle), TEXT, "--head", "kinds", "--category", LABELS[1]]
    result = CliRunner().invoke(app, [*arguments, "--format", "json", "--picture", str(image)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["head"], found["category"]) == ("kinds", LABELS[1])
    assert len(found["parts"]) > 10
    root = ElementTree.fromstring(image.read_text())
    drawn = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert any(f"{LABELS[1]} by kinds" in str(text) for text in drawn)
    assert sum("layer" in str(text) for text in drawn) == len(found["layers"])
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0
    assert "strongest part" in table.stdout


def test_hostile_names_steer_no_terminal_and_break_no_picture(made, tmp_path):
    folder, label = shutil.copytree(made("bert")[1], tmp_path / "bundle"), "\x1b[31m\u20ac"
    edit_manifest(folder, lambda m: m["heads"]["kinds"].update(labels=[label, *LABELS[1:]]))
    edit_manifest(folder, lambda m: m["heads"]["kinds"].pop("openai", None))
    image, words = tmp_path / "why.svg", ["--head", "kinds", "--category", label]
    table = siren("explain", folder, TEXT, *words, "--picture", image)
    assert table.exit_code == 0, table.output
    assert "\\x1b[31m\u20ac by kinds" in table.stdout
    assert "\x1b" not in table.stdout
    drawn = ElementTree.fromstring(image.read_text(encoding="utf-8")).itertext()
    assert " [31m\u20ac by kinds" in "".join(drawn)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = start("explain", folder, TEXT, *words, "--format", "json", env=environment)
    found = json.loads(process.communicate(timeout=TIMEOUT_S)[0])
    assert found["category"] == label


def test_what_cannot_be_explained_is_refused(made, tmp_path):
    _, bundle = made("bert")
    with pytest.raises(InputError, match="no token"):
        Explainer(bundle, threads=1).explain("")
    with pytest.raises(InputError, match="no category 'x'; it has hate"):
        Explainer(bundle, head="kinds", threads=1).explain(TEXT, category="x")
    with pytest.raises(InputError, match="none beside harm"):
        Explainer(bundle, threads=1).explain(TEXT, category="x")
    with pytest.raises(BundleError, match="no head 'other'"):
        Explainer(bundle, head="other")
    folder = tmp_path / "old"
    folder.mkdir()
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    edit_manifest(folder, lambda m: m["graphs"].pop("explain.harm"))
    assert load_bundle(folder)
    with pytest.raises(BundleError, match="export the bundle again"):
        Explainer(folder)


def test_explaining_needs_no_torch(made):
    import subprocess
    import sys

    _, bundle = made("bert")
    code = (
        "import sys\nfrom siren_runtime.scoring.explain import Explainer\n"
        f"Explainer({str(bundle)!r}, threads=1).explain('hello there')\n"
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class After(threading.Event):
    """Set once it was looked at so many times."""

    def __init__(self, looks):
        super().__init__()
        self.left = looks

    def is_set(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(("name", "last"), [("qwen3", "gradients"), ("bert", "left out")])
def test_an_explanation_ends_at_its_deadline_and_with_its_caller(made, name, last):
    explainer = Explainer(made(name)[1], threads=1)
    with pytest.raises(InterruptedCall, match="deadline of 1e-09 s passed"):
        explainer.explain(TEXT, deadline=1e-9)
    told = []
    while True:
        try:
            found = explainer.explain(TEXT, cancel=After(len(told)))
            break
        except InterruptedCall as error:
            told.append(str(error))
    assert found == explainer.explain(TEXT)
    assert last in told[-1]
    for part in ("tokenized", "for its features", "neutral text", "gradients"):
        assert any(part in message for message in told)


def test_the_command_ends_at_its_deadline(made):
    result = CliRunner().invoke(app, [str(made("bert")[1]), TEXT, "--deadline", "1e-9"])
    assert isinstance(result.exception, InterruptedCall)


def test_the_command_refuses_ten_megabytes_unless_told_otherwise(made):
    command = [str(made("bert")[1]), "<" * 10_000_000]
    result = CliRunner().invoke(app, command)
    assert "10,000,000 bytes or more, at most 1,048,576 are read" in str(result.exception)
    assert "--max-bytes" in str(result.exception)
    result = CliRunner().invoke(app, [*command, "--max-bytes", str(10_000_000)])
    assert "more than the 16,384 tokens" in str(result.exception)
    result = CliRunner().invoke(app, [command[0], TEXT, "--max-tokens", "4"])
    assert "more than the 4 tokens" in str(result.exception)
