"""A head of labels, from a category column to verdicts: trained, exported, calibrated, measured."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from typer.testing import CliRunner

from guards import load_guard
from labelled import COMMON, WORDS, Killed, make_rows, write_jsonl
from reference import plain_logits
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from siren_runtime.commands.siren import app
from siren_runtime.errors import InputError
from siren_train.data.labels import UNKNOWN, label_values
from siren_train.data.rows import Columns, Row
from siren_train.data.sources import parse_source
from siren_train.fit import pipeline
from siren_train.fit.openai_keys import table_by_names
from siren_train.fit.settings import Settings
from siren_train.measure.evaluate import measure, score_rows
from siren_train.measure.evaluation_tables import evaluation_markdown
from siren_train.measure.metrics import macro_f1
from siren_train.measure.plots import plot_evaluation
from siren_train.store.extract import extract

LABELS = ("bread", "hate", "self-harm")
SETTINGS = Settings(head="categories", trials=4, members=1, half=False, strengths=(0.1, 0.03))


def rows(count, name):
    """Rows whose words tell of each label by itself; some harmful rows do not say which."""
    rng, made = random.Random(name), []
    for index in range(count):
        held = [label for label in range(3) if rng.random() < 0.4]
        words = rng.choices(COMMON, k=2)
        for label in held:
            words += rng.choices(WORDS[label], k=7)
        rng.shuffle(words)
        category = "+".join(LABELS[label] for label in held) or "fine"
        if index % 11 == 5 and held:
            category = "harmful, not said how"
        made.append(
            {
                "id": f"{name}-{index}",
                "text": " ".join(words),
                "label": int(bool(held)),
                "category": category,
                "split": ("train", "train", "train", "validation", "test")[index % 5],
            }
        )
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory, backbone_folder):
    """The data, the trained head, and a bundle that reads it beside a head of harm."""
    folder, backbone = tmp_path_factory.mktemp("labels"), backbone_folder("bert")
    data = write_jsonl(folder / "data.jsonl", rows(700, "data"))
    store = extract(
        [parse_source(str(data))],
        Columns(labels=LABELS),
        load_checkpoint(backbone),
        folder / "store",
        model_id=str(backbone),
        max_length=48,
        threads=1,
    )
    heads = {}
    for name, settings in (
        ("harm", replace_settings(head="harm")),
        ("kinds", SETTINGS),
    ):
        heads[name] = folder / name
        table = table_by_names(LABELS) if name == "kinds" else None
        pipeline.train(
            [store], heads[name], folder / f"{name}.work", settings, openai=table, workers=1
        )
    artifact = together({name: load_artifact(path) for name, path in heads.items()})
    export_bundle(artifact, load_checkpoint(backbone), folder / "bundle")
    return data, heads, folder / "bundle", backbone, store


def replace_settings(**changes):
    return Settings(**{**{f: getattr(SETTINGS, f) for f in SETTINGS.__struct_fields__}, **changes})


@pytest.fixture
def siren():
    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.stdout, result.stderr

    return run


def test_a_harmful_row_that_does_not_say_how_is_left_out():
    def row(label, category):
        labels = Columns().labels_of(category)
        return Row("", "d", "train", "t", label, category, None, labels=labels)

    assert label_values(row(1, "hate+bread"), LABELS) == [1, 1, 0]
    assert label_values(row(1, "hate + other"), LABELS) == [0, 1, 0]
    assert label_values(row(0, "neutral"), LABELS) == [0, 0, 0]
    assert label_values(row(0, ""), LABELS) == [0, 0, 0]
    assert label_values(row(1, "other"), LABELS) == [UNKNOWN] * 3
    assert label_values(row(1, "hated"), LABELS) == [UNKNOWN] * 3


def test_the_store_keeps_what_rows_say_and_trains_on_what_is_known(made):
    data, _, _, _, store = made
    given = [json.loads(line) for line in data.read_text().splitlines()]
    elsewhere = {row["text"] for row in given if row["split"] != "train"}
    train = [row for row in given if row["split"] == "train" and row["text"] not in elsewhere]
    known = [row for row in train if row["category"] != "harmful, not said how"]
    features = store.features("train", "residual_mean", "categories")
    assert features.rows == len(known) < len(train)
    expected = [[int(name in row["category"].split("+")) for name in LABELS] for row in known]
    np.testing.assert_array_equal(features.labels, expected)
    assert store.features("train", "residual_mean").rows == len(train)


def test_probes_of_another_head_let_both_read_the_same_neurons(made, tmp_path):
    store, read = made[-1], []
    for head, probes in (("harm", None), ("categories", tmp_path / "harm.work")):
        settings = replace_settings(head=head, shares=(0.8,), trials=1)
        work = tmp_path / f"{head}.work"
        pipeline.train([store], tmp_path / head, work, settings, probes_of=probes)
        read.append(read_neurons(tmp_path / head))
    assert read[0] == read[1]
    run, x = tmp_path / "harm.work", (tmp_path / "x", tmp_path / "x.work")
    with pytest.raises(InputError, match="does not say which run"):
        pipeline.train([store], *x, SETTINGS, probes_of=tmp_path)
    known = json.loads((run / "settings.json").read_text())
    known["stores"][0]["model_id"] = "another"
    (run / "settings.json").write_text(json.dumps(known))
    with pytest.raises(InputError, match="of other features"):
        pipeline.train([store], tmp_path / "y", tmp_path / "y.work", SETTINGS, probes_of=run)


def read_neurons(head):
    module = json.loads((head / "siren_config.json").read_text())["siren_module"]
    return module["selected_neurons_dict"], module["layer_weights"]


def decided_labels(bundle):
    return load_guard(bundle, threads=1).manifest.decision("kinds").labels


def test_training_chooses_temperatures_and_thresholds_by_rows_left_out(made):
    labels = decided_labels(made[2])
    assert [label.name for label in labels] == [*LABELS]
    assert all(label.temperature != 1.0 and 0.1 < label.threshold < 0.9 for label in labels)
    assert load_artifact(made[1]["kinds"]).decision.labels == labels


def test_the_head_tells_each_label_from_the_others(made):
    data, _, bundle, _, _ = made
    guard = load_guard(bundle, threads=1)
    test = [json.loads(line) for line in data.read_text().splitlines()]
    test = [r for r in test if r["split"] == "test" and not r["category"].startswith("harmful")]
    results = guard.score_batch([row["text"] for row in test])
    truth = np.array([[name in row["category"].split("+") for name in LABELS] for row in test])
    found = np.array([[*result.categories.values()] for result in results])
    assert roc_auc_score(truth, found, average=None).min() > 0.7
    assert any(len(result.flagged) > 1 for result in results)
    assert guard.heads == ("harm", "kinds")


def test_a_trained_head_scores_as_plain_pytorch_does(made):
    data, heads, bundle, backbone, _ = made
    guard = load_guard(bundle, threads=1)
    for line in data.read_text().splitlines()[:6]:
        text = json.loads(line)["text"]
        temperatures = torch.tensor([label.temperature for label in decided_labels(bundle)])
        expected = torch.sigmoid(plain_logits(heads["kinds"], backbone, text) / temperatures)
        found = guard.score(text).categories
        np.testing.assert_allclose([*found.values()], expected, rtol=0, atol=1e-5)


def test_labels_are_calibrated_one_by_one_and_verdicts_follow(made, tmp_path, siren):
    data, _, made_bundle, _, _ = made
    bundle = tmp_path / "bundle"
    shutil.copytree(made_bundle, bundle)
    before = load_guard(bundle, threads=1).manifest
    old = {label.name: label.temperature for label in before.decision("kinds").labels}
    status, out, err = siren(
        "calibrate", bundle, data, "--head", "kinds", "--temperature", "--threshold", "best"
    )
    assert status == 0, err
    manifest = load_guard(bundle, threads=1).manifest
    labels = manifest.decision("kinds").labels
    assert [label.name for label in labels] == [*LABELS]
    assert all(label.temperature != 1.0 for label in labels)
    assert len({label.threshold for label in labels}) > 1
    assert manifest.decision("harm") == before.decision("harm")
    assert all(label.name in out for label in labels)

    guard = load_guard(bundle, threads=1)
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()[:40]]
    raw = load_guard(made_bundle, threads=1).score_batch(texts)
    for result, plain in zip(guard.score_batch(texts), raw, strict=True):
        head = result.heads["kinds"]
        for label in labels:
            odds = np.log(plain.categories[label.name] / (1 - plain.categories[label.name]))
            expected = 1 / (1 + np.exp(-odds * old[label.name] / label.temperature))
            assert head.categories[label.name] == pytest.approx(expected, abs=1e-4)
            over = head.categories[label.name] >= label.threshold
            assert (label.name in head.flagged) == over
        assert head.is_harmful == bool(head.flagged)
        assert head.score == max(head.categories.values())

    status, _, _ = siren("calibrate", bundle, "--head", "kinds", "--threshold", "0.9")
    assert status == 0
    set_by_hand = load_guard(bundle, threads=1).manifest.decision("kinds").labels
    assert {label.threshold for label in set_by_hand} == {0.9}
    assert [label.temperature for label in set_by_hand] == [label.temperature for label in labels]


@pytest.mark.parametrize(
    ("arguments", "status", "match"),
    [
        (
            ["--head", "kinds", "--tier", "a=0.5"],
            2,
            "tiers, spans, --responses and --max-rows are for heads",
        ),
        (["--head", "other", "--threshold", "0.5"], 1, "no head 'other'; it has harm, kinds"),
        (["--head", "kinds", "--threshold", "best"], 2, "labelled text is needed"),
        (["--head", "kinds", "--temperature"], 2, "labelled text is needed"),
    ],
)
def test_calibrations_that_a_head_does_not_take_are_refused(
    made, tmp_path, siren, arguments, status, match
):
    bundle = shutil.copytree(made[2], tmp_path / "bundle")
    found, _, err = siren("calibrate", bundle, *arguments)
    assert found == status
    assert match in " ".join(err.replace("│", " ").split())


def test_another_head_of_classes_is_calibrated_by_its_name(made, tmp_path, siren):
    data, _, made_bundle, _, _ = made
    bundle = shutil.copytree(made_bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "guard.json").read_text())
    status, _, err = siren(
        "calibrate", bundle, data, "--head", "harm", "--tier", "block=0.9", "--threshold", "fpr:0.1"
    )
    assert status == 0, err
    changed = json.loads((bundle / "guard.json").read_text())
    assert changed["tiers"] == [{"name": "block", "threshold": 0.9}]
    assert changed["decisions"] == manifest["decisions"]


def test_an_evaluation_measures_and_draws_each_label(made, tmp_path):
    data, _, bundle, _, _ = made
    guard = load_guard(bundle, threads=1)
    sources = [parse_source(str(data))]
    scores = score_rows(guard, sources, Columns(), "test")
    thresholds = {name: dict(head.labels) for name, head in guard.judge.heads.items()}
    evaluation = measure(
        scores, bundles=["b"], sources=["d"], split="test", threshold=0.5, thresholds=thresholds
    )
    (head,) = evaluation.heads
    assert (head.head, [*head.by_category], head.exclusive) == ("kinds", [*LABELS], False)
    assert head.rows < len(scores.scores)
    part = scores.of(scores.harmful)
    assert (len(part.scores), part.harmful.all(), part.heads) == (scores.harmful.sum(), True, ())
    assert head.macro_f1 == pytest.approx(np.mean([m.f1 for m in head.by_category.values()]))
    markdown = evaluation_markdown(evaluation)
    for label in decided_labels(bundle):
        assert f"| {label.name} | {label.threshold:.3g} |" in markdown
    plot_evaluation(scores, evaluation, tmp_path)
    assert (tmp_path / "categories.kinds.png").stat().st_size > 10_000

    plain = score_rows(guard, [parse_source(str(write_plain(tmp_path)))], Columns(), "test")
    assert plain.heads == ()  # rows that name no label measure none


def write_plain(folder):
    return write_jsonl(folder / "plain.jsonl", make_rows(40))


def test_more_than_two_classes_are_measured_one_by_one(tmp_path, backbone_folder):
    backbone = backbone_folder("bert")
    names = ("safe", "harmful", "odd")
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(240, classes=3))
    sources, columns = [parse_source(str(data))], Columns(classes=names)
    store = extract(
        sources, columns, load_checkpoint(backbone), tmp_path / "store",
        model_id=str(backbone), max_length=48, threads=1,
    )  # fmt: skip
    pipeline.train([store], tmp_path / "head", tmp_path / "work", replace_settings(head="harm"))
    export_bundle(load_artifact(tmp_path / "head"), load_checkpoint(backbone), tmp_path / "bundle")
    guard = load_guard(tmp_path / "bundle", threads=1)
    result = guard.score("how to steal a weapon")
    assert tuple(result.categories) == names
    assert sum(result.categories.values()) == pytest.approx(1, abs=1e-5)
    assert result.categories["harmful"] == pytest.approx(result.score, abs=1e-6)
    scores = score_rows(guard, sources, columns, "test")
    evaluation = measure(scores, bundles=["b"], sources=["d"], split="test", threshold=0.5)
    (head,) = evaluation.heads
    labels = np.array([row["label"] for row in make_rows(240, classes=3) if row["split"] == "test"])
    found = scores.heads[0].probabilities.argmax(axis=1)
    expected = f1_score(labels, found, average=None)
    np.testing.assert_allclose([m.f1 for m in head.by_category.values()], expected)
    assert "each class against the rest" in evaluation_markdown(evaluation)


@pytest.mark.parametrize(
    ("category", "labels", "message"),
    [
        ({}, ("hate", "hats"), "no row has 'hats'"),
        ({"category": "hate"}, ("hate",), "all rows with categories have 'hate'"),
    ],
)
def test_a_label_that_no_row_has_or_all_have_is_refused(
    tmp_path, backbone_folder, category, labels, message
):
    data = write_jsonl(tmp_path / "data.jsonl", [{**row, **category} for row in rows(60, "few")])
    with pytest.raises(InputError, match=f"of the train split {message}"):
        extract(
            [parse_source(str(data))], Columns(labels=labels),
            load_checkpoint(backbone_folder("bert")), tmp_path / "store", model_id="m",
        )  # fmt: skip


def test_a_store_without_labels_trains_no_categories(store, tmp_path):
    with pytest.raises(InputError, match="extract with --labels"):
        pipeline.train([store], tmp_path, tmp_path / ".work", SETTINGS)


def test_the_metric_counts_labels_that_occur():
    truth = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert macro_f1(truth, truth) == 1.0
    assert macro_f1(truth[1:2], truth[1:2]) == 1.0
    found = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert macro_f1(truth, found) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1(truth, np.zeros_like(truth)) == 0.0


def test_an_interrupted_training_of_labels_ends_as_an_undisturbed_one(made, tmp_path):
    _, heads, _, _, store = made

    calls = []

    def kill(stage, done, total):
        calls.append(stage)
        if len(calls) == 30:
            raise Killed

    work = tmp_path / "work"
    table = table_by_names(LABELS)
    with pytest.raises(Killed):
        pipeline.train([store], tmp_path / "h", work, SETTINGS, openai=table, progress=kill)
    pipeline.train([store], tmp_path / "h", work, SETTINGS, openai=table)
    for name in ("siren_config.json", "siren.safetensors"):
        assert (tmp_path / "h" / name).read_bytes() == (heads["kinds"] / name).read_bytes()


def test_a_single_head_of_labels_is_a_guard_of_its_own(made, tmp_path):
    data, heads, both, backbone, _ = made
    export_bundle(load_artifact(heads["kinds"]), load_checkpoint(backbone), tmp_path / "bundle")
    alone, beside = Guard.load(tmp_path / "bundle"), load_guard(both, threads=1)
    assert alone.heads == ("harm",)
    text = json.loads(data.read_text().splitlines()[1])["text"]
    result = alone.score(text)
    assert result.categories == pytest.approx(beside.score(text).categories, abs=1e-6)
    assert result.score == max(result.categories.values())
    assert result.is_harmful == bool(result.flagged)
    stricter = alone.score(text, threshold=0.999)
    assert set(stricter.flagged) <= set(result.flagged)
