"""An evaluation measures what the guards say about the rows of one split."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from calibrated import write_calibration
from guards import load_guard
from labelled import Rows, make_rows, write_jsonl
from siren_command import siren
from siren_export.heads.registry import load_artifact
from siren_runtime import Guard
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.thresholds import ResponseThresholds
from siren_runtime.errors import InputError
from siren_runtime.scoring.call import Text
from siren_train.commands import calibrate, evaluate
from siren_train.data.rows import Columns
from siren_train.data.sources import parse_source
from siren_train.measure.evaluate import measure, score_rows
from siren_train.measure.metrics import binary_metrics
from tiny_bundle import edit_manifest, make_bundle
from valid_artifact import CONFIG, TENSORS
from valid_artifact import write as write_head_files

ROWS = make_rows(60)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a random head."""
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 labelled rows, 12 of them in the test split."""
    return write_jsonl(tmp_path / "data.jsonl", ROWS)


def as_given(rows: Rows) -> list[Text]:
    """What a caller gives a guard of rows."""
    return [(row["prompt"], row["response"]) for row in rows]


def test_the_rows_of_the_split_are_scored(bundle: Path, data: Path) -> None:
    guard = Guard.load(bundle)
    scores = score_rows(guard, [parse_source(str(data))], Columns(), "test")
    rows = [row for row in ROWS if row["split"] == "test"]
    expected = [result.score for result in guard.score_batch(as_given(rows))]
    np.testing.assert_allclose(scores.scores, expected, atol=1e-6)
    assert scores.harmful.tolist() == [row["label"] == 1 for row in rows]


def test_an_ensemble_scores_by_the_mean(bundle: Path, data: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", scale=2.0)
    output = tmp_path / "report"
    arguments = [str(bundle), str(data), "--with", str(other), "-o", str(output)]
    result = CliRunner().invoke(evaluate.app, arguments)
    assert result.exit_code == 0, result.output
    scores = score_rows(load_guard([bundle, other]), [parse_source(str(data))], Columns(), "test")
    expected = binary_metrics(scores.harmful, scores.scores, 0.5)
    found = json.loads((output / "evaluation.json").read_text())
    assert found["bundles"] == [str(bundle), str(other)]
    assert {"command", "created", "machine", "versions"} <= found.keys()
    assert found["weights_sha256"] == [{}, {}]  # of bundles that do not say
    assert found["by_dataset"]["data"]["auroc"] == pytest.approx(expected.auroc)


def test_rows_with_a_response_are_flagged_by_their_own_threshold(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    write_calibration(bundle, threshold=0.0, responses=ResponseThresholds(1.0))
    done = siren("evaluate", bundle, data, "-o", tmp_path / "report")
    assert "threshold 0, with a response 1;" in done.stdout
    found = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert (found["threshold"], found["response_threshold"]) == (0.0, 1.0)
    rows = [row for row in ROWS if row["split"] == "test"]
    flagged = [result.is_harmful for result in load_guard(bundle).score_batch(as_given(rows))]
    assert flagged == [not row["response"] for row in rows]
    expected = np.mean(
        [row["label"] == verdict for row, verdict in zip(rows, flagged, strict=True)]
    )
    assert found["by_dataset"]["data"]["accuracy"] == pytest.approx(expected)


def test_hostile_names_steer_no_terminal(bundle: Path, tmp_path: Path) -> None:
    data, told = write_jsonl(tmp_path / "\x1b[31m.jsonl", ROWS), "\\x1b[31m"
    done = siren("evaluate", bundle, data)
    assert done.exit_code == 0, done.output
    assert f"| {told} |" in done.stdout
    tier = siren("calibrate", bundle, data, "--tier", "\x1b[31m=fpr:0.5", "--threads", 1)
    assert tier.exit_code == 0, tier.output
    assert f"{told}: from " in tier.stdout
    edit_manifest(bundle, lambda m: m["heads"]["harm"].update(labels=["safe", "\x1b[31m"]))
    refused = siren("evaluate", bundle, data, "--classes", "no,safe")
    assert refused.exit_code == 2
    assert told in refused.stderr
    assert "\x1b" not in "".join(one.output for one in (done, tier, refused))


def test_a_split_without_rows_is_named(bundle: Path, data: Path) -> None:
    with pytest.raises(InputError, match=r"no rows of the 'dev' split .* found test, train"):
        score_rows(Guard.load(bundle), [parse_source(str(data))], Columns(), "dev")


def test_bad_data_is_found_before_a_row_is_scored(bundle: Path, tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "id": "last", "label": 7}]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    told: list[object] = []
    with pytest.raises(InputError, match=r"data\.jsonl, row 61: column 'label' is 7"):
        score_rows(
            Guard.load(bundle),
            [parse_source(str(data))],
            Columns(),
            "test",
            lambda *stage, **share: told.append(stage),
        )
    assert not told


def test_the_bundle_says_what_the_labels_mean(bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle / "guard.json").read_text())
    manifest["heads"]["harm"]["labels"] = ["fine", "bad"]
    (bundle / "guard.json").write_text(json.dumps(manifest))
    rows = [{**row, "label": ("fine", "bad")[row["label"]]} for row in ROWS]
    arguments = [str(bundle), str(write_jsonl(tmp_path / "data.jsonl", rows))]
    other = shutil.copytree(bundle, tmp_path / "other")
    for more in ([], ["--with", str(other)]):
        result = CliRunner().invoke(evaluate.app, [*arguments, *more])
        assert result.exit_code == 0, result.output
        assert "| data | 12 | 6 |" in result.stdout
    assert CliRunner().invoke(calibrate.app, [*arguments, "--threshold", "best"]).exit_code == 0
    assert CliRunner().invoke(evaluate.app, [*arguments, "--classes", "bad,fine"]).exit_code == 2
    result = CliRunner().invoke(evaluate.app, [*arguments, "--classes", "safe,harmful"])
    assert "expected one of safe, harmful" in str(result.exception)


def test_a_category_of_any_name_is_reported(bundle: Path, tmp_path: Path) -> None:
    rows = [{**row, "category": "a|b $\\nothing$"} for row in ROWS]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    arguments = [str(bundle), str(data), "-o", str(tmp_path / "report"), "--by", "category"]
    result = CliRunner().invoke(evaluate.app, arguments)
    assert result.exit_code == 0, result.output
    assert "| a\\|b $\\nothing$ | 12 | 6 |" in result.stdout
    assert (tmp_path / "report" / "verdicts.png").exists()


def test_categories_add_up_to_their_data_set(bundle: Path, data: Path) -> None:
    scores = score_rows(Guard.load(bundle), [parse_source(str(data))], Columns(), "train")
    evaluation = measure(
        scores, bundles=["b"], sources=["d"], split="train", threshold=0.5, by_category=True
    )
    categories = evaluation.by_category["data"].values()
    assert sum(m.rows for m in categories) == evaluation.by_dataset["data"].rows == 36
    assert evaluation.mean_macro_f1 == evaluation.by_dataset["data"].macro_f1


def test_the_evaluate_command_writes_its_report(bundle: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    arguments = [str(bundle), str(data), "-o", str(output), "--by", "category"]
    result = CliRunner().invoke(evaluate.app, arguments)
    assert result.exit_code == 0, result.output
    assert "| data | 12 | 6 |" in result.stdout
    report = json.loads((output / "evaluation.json").read_text())
    assert report["by_dataset"]["data"]["rows"] == 12
    assert (output / "evaluation.md").read_text() == result.stdout
    for name in ("precision_recall", "scores", "reliability", "verdicts"):
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_calibrate_command_writes_tiers(bundle: Path, data: Path) -> None:
    arguments = [str(bundle), str(data), "--split", "train", "--threshold", "best"]
    arguments += ["--temperature", "--tier", "block=fpr:0.1", "--tier", "log=recall:1"]
    result = CliRunner().invoke(calibrate.app, arguments)
    assert result.exit_code == 0, result.output
    manifest = Guard.load(bundle).manifest
    assert [tier.name for tier in manifest.tiers] == ["block", "log"]
    assert manifest.temperature != 1.0


def test_thresholds_that_are_numbers_need_no_labelled_text(bundle: Path, tmp_path: Path) -> None:
    def calibrated(*arguments: str) -> Manifest:
        result = CliRunner().invoke(calibrate.app, [str(bundle), *arguments])
        assert result.exit_code == 0, result.output
        assert "threshold from 0.7" in result.stderr
        return Guard.load(bundle).manifest

    assert calibrated("--threshold", "0.7").threshold == 0.7
    manifest = calibrated("--tier", "block=0.9", "--tier", "log=0.25")
    tiers = {tier.name: tier.threshold for tier in manifest.tiers}
    assert (manifest.threshold, tiers) == (0.7, {"block": 0.9, "log": 0.25})
    (tmp_path / "tiers.json").write_text('{"block": 0.8}')
    manifest = calibrated("--tiers", str(tmp_path / "tiers.json"), "--threshold", "0.75")
    assert (manifest.threshold, [tier.threshold for tier in manifest.tiers]) == (0.75, [0.8])


def test_what_a_bundle_was_calibrated_to_is_kept_beside_its_head(
    bundle: Path, tmp_path: Path
) -> None:
    neurons = {"layer0_residual_mean": [7, 2, 3], "layer1_residual_mean": [1, 0, 5]}
    module = {"selected_layers": [0, 1], "layer_weights": {}, "selected_neurons_dict": neurons}
    like_it = {
        **CONFIG,
        "siren_module": {**CONFIG["siren_module"], **module},
        "mlp": {**CONFIG["mlp"], "input_dim": 6},
    }
    wider = {**TENSORS, "network.0.weight": np.ones((4, 6), np.float32)}
    head = write_head_files(tmp_path / "head", like_it, wider)
    arguments = [str(bundle), "--threshold", "0.7", "--tier", "block=0.9", "--record", str(head)]
    result = CliRunner().invoke(calibrate.app, arguments)
    assert result.exit_code == 0, result.output
    decision = load_artifact(head).decision
    assert decision == load_bundle(bundle).manifest.decision("harm")
    assert (decision.threshold, [tier.name for tier in decision.tiers]) == (0.7, ["block"])


def test_nothing_is_kept_beside_another_head_or_chosen_by_a_rule_that_is_none(
    bundle: Path, tmp_path: Path
) -> None:
    other = write_head_files(tmp_path / "other", CONFIG, TENSORS)
    result = siren("calibrate", bundle, "--threshold", "0.7", "--record", other)
    assert result.exit_code == 1
    assert "is another head than 'harm' of the bundle: layers is [0, 3] here" in result.stderr
    assert not (other / "decision.json").exists()
    assert load_bundle(bundle).manifest.threshold == 0.5
    data = write_jsonl(tmp_path / "data.jsonl", calibration_rows(bundle))
    for option, rule in (("--threshold", "fpr:2"), ("--tier", "a=best:1"), ("--spans", "best")):
        result = siren("calibrate", bundle, data, option, rule)
        assert result.exit_code == 1
        assert "is no rule for" in result.stderr
        assert "scoring" not in result.stderr  # no row was


def calibration_rows(bundle: Path, flipped: int = 0) -> list[dict[str, object]]:
    """Rows labelled as the bundle scores them, but for so many of the highest, which are safe."""
    texts = [f"text {index} {'xyz'[index % 3] * (index % 17)}" for index in range(60)]
    scores = np.array([result.score for result in Guard.load(bundle).score_batch(texts)])
    labels = (scores >= 0.5).astype(int)
    labels[np.argsort(scores)[60 - flipped :]] = 0
    return [
        {"text": text, "label": int(label), "split": "validation"}
        for text, label in zip(texts, labels, strict=True)
    ]


def test_a_bundle_may_be_calibrated_again(bundle: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", calibration_rows(bundle))
    temperatures = []
    for _ in range(2):
        result = CliRunner().invoke(calibrate.app, [str(bundle), str(data), "--temperature"])
        assert result.exit_code == 0, result.output
        temperatures.append(Guard.load(bundle).manifest.temperature)
    assert temperatures[0] == temperatures[1] == pytest.approx(0.05, rel=0.01)


def test_thresholds_hold_for_the_scores_that_the_guard_gives(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", scale=5.0)
    rows = calibration_rows(bundle, flipped=6)
    safe = [str(row["text"]) for row in rows if not row["label"]]
    assert sum(result.score == 1.0 for result in Guard.load(bundle).score_batch(safe)) >= 6
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    arguments = [str(bundle), str(data), "--temperature", "--threshold", "fpr:0.1"]
    result = CliRunner().invoke(calibrate.app, arguments)
    assert result.exit_code == 0, result.output
    flagged = [result.is_harmful for result in Guard.load(bundle).score_batch(safe)]
    assert np.mean(flagged) <= 0.1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--tier", "block"],
        ["--tiers", "x.json", "--tier", "block=0.5"],
        ["--tier", "block=0.9", "--tier", "block=0.5"],
        ["--threshold", "best"],
        ["--threshold", "1.5"],
        ["--threshold", "0.5", "--temperature"],
        ["--threshold", "0.5", "--tier", "block=fpr:0.1"],
    ],
)
def test_wrong_use_of_calibrate_exits_2(bundle: Path, arguments: list[str]) -> None:
    assert CliRunner().invoke(calibrate.app, [str(bundle), *arguments]).exit_code == 2
