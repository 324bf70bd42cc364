"""Forecast heads trained on soft targets of prefixes."""

import msgspec
import numpy as np
import pytest

from labelled import make_rows, write_jsonl
from siren_command import siren
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.errors import InputError
from siren_train.data.rows import Columns, read_rows
from siren_train.data.sources import parse_source
from siren_train.fit import forecast_pipeline
from siren_train.fit.probe import Probe
from siren_train.fit.selection import gather, strongest
from siren_train.fit.settings import Settings
from siren_train.fit.splits import load_splits
from siren_train.measure.metrics import MacroF1
from siren_train.store.extract import extract

SETTINGS = Settings(head="forecast", strengths=(0.03,), members=2)
HIGH, LOW = 0.85, 0.2


def prefix_rows(count):
    """Rows as siren rollouts writes them, whose targets show in their words."""
    rows = []
    for row in make_rows(count):
        words = row["prompt"].split()
        target = HIGH if row["label"] else LOW
        rows.append(
            {
                "prompt": " ".join(words[:4]),
                "prefix": " ".join(words[4:]),
                "target": target,
                "rollouts": 4,
                "source": "small",
                "split": row["split"],
            }
        )
    return rows


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory, backbone_folder):
    """A store of prefixes."""
    folder, backbone = tmp_path_factory.mktemp("prefixes"), backbone_folder("bert")
    data = write_jsonl(folder / "targets.jsonl", prefix_rows(300))
    return extract(
        [parse_source(str(data))],
        Columns(prefixes=True),
        load_checkpoint(str(backbone)),
        folder / "store",
        model_id=str(backbone),
        max_length=48,
        threads=1,
    )


@pytest.fixture(scope="module")
def trained(prefixes, tmp_path_factory):
    """A function: width of the hidden layer -> a head's folder and the report."""
    folder, cases = tmp_path_factory.mktemp("trained"), {}

    def make(hidden):
        if hidden not in cases:
            output = folder / str(hidden)
            cases[hidden] = (
                output,
                forecast_pipeline.train(
                    [prefixes], output, folder / "work", SETTINGS, neurons=20, hidden=hidden
                ),
            )
        return cases[hidden]

    return make


def test_the_store_has_the_targets_and_the_side_of_one_half_they_lie_on(prefixes):
    rows = prefixes.features("train", "residual_mean", "forecast")
    assert set(rows.expected_harm.tolist()) == {HIGH, LOW}
    np.testing.assert_array_equal(rows.labels, rows.expected_harm >= 0.5)
    half = rows.where(rows.labels == 1)
    assert set(half.expected_harm.tolist()) == {HIGH}


@pytest.mark.parametrize("hidden", [0, 4], ids=["linear", "mlp"])
def test_a_head_gives_the_expected_harm_of_what_follows(prefixes, trained, hidden):
    folder, report = trained(hidden)
    artifact = load_artifact(folder)
    assert artifact.head.spec.kind == "forecast"
    assert artifact.head.n_features == 20
    members = 2 if hidden else 1
    width = hidden * members
    assert report.parameters == (20 * width + 2 * width + 1 if hidden else 21)
    (forecast,) = report.by_dataset.values()
    # The tokenizer that is trained for tests breaks ties in any order, so features vary.
    assert forecast.cross_entropy < forecast.constant
    assert forecast.auroc > 0.65
    _, validation = load_splits([prefixes], SETTINGS)
    x = gather(validation.pooled, artifact.head.layers)
    for place, dense in enumerate(artifact.head.dense):
        x = (np.maximum(x, 0) if place else x) @ dense.weight.T + dense.bias
    scores = 1 / (1 + np.exp(-x[:, 0]))
    for target, other in ((HIGH, LOW), (LOW, HIGH)):
        mean = scores[validation.expected_harm == target].mean()
        assert abs(mean - target) < abs(mean - other)
    assert abs(scores.mean() - validation.expected_harm.mean()) < 0.1
    assert "cross-entropy" in (folder / "training.md").read_text()


def test_one_layer_may_be_read_and_must_be_there(prefixes, trained, tmp_path):
    work = trained(0)[0].parent / "work"
    options = {"neurons": 5, "hidden": 0}
    forecast_pipeline.train([prefixes], tmp_path / "one", work, SETTINGS, layer=1, **options)
    (layer,) = load_artifact(tmp_path / "one").head.layers
    assert (layer.layer, layer.channels.size) == (1, 5)
    with pytest.raises(InputError, match="has layers 0 to 3"):
        forecast_pipeline.train([prefixes], tmp_path / "x", work, SETTINGS, layer=4, **options)


def test_the_probes_of_another_run_are_not_taken_over(prefixes, trained, tmp_path):
    work, options = trained(0)[0].parent / "work", {"neurons": 5, "hidden": 0}
    other = msgspec.structs.replace(SETTINGS, strengths=(0.01,))
    with pytest.raises(InputError, match="the work of a run with other settings"):
        forecast_pipeline.train([prefixes], tmp_path / "x", work, other, **options)
    (tmp_path / "probe.0.npz").touch()
    with pytest.raises(InputError, match=r"has probes, and no settings\.json"):
        forecast_pipeline.train([prefixes], tmp_path / "x", tmp_path, SETTINGS, **options)


@pytest.mark.parametrize("head", ["harm", "polynomial", "categories"])
def test_prefixes_train_no_other_head(prefixes, tmp_path, head):
    """Those of one response would stand in several folds, and be measured by what they taught."""
    result = siren("train", prefixes.folder, "-o", tmp_path / "head", "--head", head)
    assert result.exit_code == 1
    assert "its rows are prefixes, of which --head forecast alone is trained" in result.stderr
    assert not (tmp_path / "head").exists()


def test_a_store_without_targets_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="siren rollouts"):
        forecast_pipeline.train([store], tmp_path, tmp_path / "work", SETTINGS, neurons=5, hidden=0)


@pytest.mark.parametrize("target", [1.5, -0.1, "0.5", True, None, float("nan")])
def test_a_target_is_a_number_from_0_to_1(tmp_path, target):
    data = write_jsonl(tmp_path / "rows.jsonl", [{**prefix_rows(1)[0], "target": target}])
    with pytest.raises(InputError, match=r"column 'target' is .* from 0 to 1"):
        list(read_rows(parse_source(str(data)), Columns(prefixes=True)))


def test_an_empty_prefix_leaves_the_prompt(tmp_path):
    rows = [{"prompt": "How?", "prefix": part, "target": 1, "split": "a"} for part in ("", "mix")]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = list(read_rows(parse_source(str(data)), Columns(prefixes=True)))
    assert [row.text for row in found] == ["How?", "How?\nmix"]
    assert [row.turns for row in found] == [(), ("How?", "mix")]


def test_the_strongest_channels_count_by_their_share_and_their_layers_weight():
    def probe(layer, weights, score):
        return Probe(layer, np.float32(weights), 0.1, MacroF1(score, {"data": score}))

    probes = [
        probe(0, [6, 3, 1, 0], 0.9),
        probe(1, [0, 50, 50, 0], 0.5),
        probe(2, [9, 0, 1, 0], 0.7),
    ]
    found = strongest(probes, 3)
    assert [(one.layer, one.channels.tolist()) for one in found] == [(0, [0, 1]), (2, [0])]
    assert [one.weight for one in found] == [1.0, pytest.approx(0.5)]
    assert sum(one.channels.size for one in strongest(probes, 100)) == 7
    uniform = strongest(probes, 2, "uniform")
    assert [(one.layer, one.channels.tolist()) for one in uniform] == [(0, [0]), (2, [0])]
