"""`--precision auto` keeps the fastest setting within the budget, and says what it tried."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from backbones import BackboneSpec
from guards import load_guard
from models import make_artifact, make_backbone
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.passes.calibration import read_calibration
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.tune import tune as tune_module
from siren_export.tune.tune import kept_candidate, tune
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.commands.siren import app
from siren_runtime.errors import InputError
from texts import TEXTS as ALL_TEXTS

TEXTS = ALL_TEXTS[::3]
LAYER = "layers.1/mlp/down_proj/weight"


@pytest.fixture(scope="module")
def sensitive(tmp_path_factory):
    """A guard whose last layer has an outlier in each output channel, which no input reaches.

    In float32 the outliers change nothing; a channel in 4 bits has only their scale. In 8 bits they
    are evened out.
    """
    folder = tmp_path_factory.mktemp("sensitive")
    backbone = make_backbone(folder / "backbone", BackboneSpec("qwen3", {"num_hidden_layers": 2}))
    head = load_artifact(make_artifact(folder / "head", backbone))
    file = backbone / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.gate_proj.weight"][5] = 0
    weights["model.layers.1.mlp.down_proj.weight"][:, 5] = 100
    save_file(weights, file, metadata={"format": "pt"})
    return head, load_checkpoint(backbone)


def run(guard, output, **options):
    return tune(*guard, output / "bundle", texts=TEXTS, **options)


@pytest.fixture
def by_size(monkeypatch):
    """Let a guard's size say how long it takes, so that no test hangs on the machine's mood.

    Products of 8 bits take twice their size, so that matrices are kept in float32 beside 4 bits.
    """

    def took(manifest):
        return manifest.files["weights.bin"].size * (2.0 if manifest.precision == "int8" else 1.0)

    def time_in_turns(guards, texts, progress):
        progress("time", 1, 1)
        return [took(guard.manifest) for guard in guards]

    monkeypatch.setattr(tune_module, "time_in_turns", time_in_turns)


@pytest.mark.usefixtures("by_size")
def test_without_a_budget_float32_is_kept_however_slow(sensitive, tmp_path):
    tuning = run(sensitive, tmp_path, budget=0.0)
    assert kept_candidate(tuning) == tuning.candidates[0]
    assert tuning.candidates[0].setting == "fp32"
    assert tuning.candidates[0].max_difference == tuning.candidates[0].changed_verdicts == 0
    assert {candidate.precision for candidate in tuning.candidates} >= {"fp32", "int8", "int4"}
    assert {candidate.outcome for candidate in tuning.candidates[1:]} <= {"over budget", "slower"}
    assert not list(tmp_path.iterdir())  # nothing is left beside the bundle


def test_a_budget_that_all_settings_meet_keeps_the_fastest(sensitive, tmp_path):
    told = []
    tuning = run(sensitive, tmp_path, budget=1.0, tried=told.append)
    assert len(told) == len(tuning.candidates) >= 3
    assert kept_candidate(tuning).speed == max(candidate.speed for candidate in tuning.candidates)
    assert all(candidate.milliseconds > 0 for candidate in tuning.candidates)


def test_milliseconds_and_speeds_agree_on_a_machine_that_slows_down(
    sensitive, tmp_path, monkeypatch
):
    slower = iter(range(1, 100))

    def time_in_turns(guards, texts, advance):
        factor = next(slower)
        sizes = [guard.manifest.files["weights.bin"].size for guard in guards]
        return [float(factor * size) for size in sizes]

    monkeypatch.setattr(tune_module, "time_in_turns", time_in_turns)
    float32, *others = run(sensitive, tmp_path, budget=1.0).candidates
    for candidate in others:
        assert candidate.speed == pytest.approx(float32.milliseconds / candidate.milliseconds)
        assert (candidate.milliseconds < float32.milliseconds) == (candidate.speed > 1)


def test_a_huge_text_is_timed_by_what_the_guard_reads_of_it(sensitive, tmp_path, monkeypatch):
    timed = []

    def time_in_turns(guards, texts, progress):
        timed.extend(texts)
        return [1.0] * len(guards)

    monkeypatch.setattr(tune_module, "time_in_turns", time_in_turns)
    huge = "far beyond what it reads " * 10_000
    tune(*sensitive, tmp_path / "bundle", budget=0.0, texts=["short", huge])
    assert "short" in timed
    assert max(map(len, timed)) <= 16 * sensitive[0].max_length


@pytest.mark.usefixtures("by_size")
def test_the_layer_that_quantization_hurts_is_the_one_kept_in_float32(sensitive, tmp_path):
    tuning = run(sensitive, tmp_path, budget=0.02)
    kept, (float32, _, int4) = kept_candidate(tuning), tuning.candidates[:3]
    assert LAYER in kept.keep_float
    assert kept.mean_difference <= 0.02 < int4.mean_difference
    assert kept.bytes < float32.bytes
    assert tuning.candidates[3].keep_float == [LAYER]


@pytest.mark.usefixtures("by_size")
def test_the_bundle_scores_as_its_candidate_and_carries_the_table(sensitive, tmp_path):
    tuning = run(sensitive, tmp_path, budget=0.05)
    kept = kept_candidate(tuning)
    bundle = tmp_path / "bundle"
    keep_float = frozenset(kept.keep_float)
    export_bundle(
        *sensitive, bundle, precision=kept.precision, keep_float=keep_float, tuning=tuning
    )
    assert load_bundle(bundle).manifest.tuning == tuning
    export_bundle(*sensitive, tmp_path / "float")
    scores, expected = (
        np.array([result.score for result in load_guard(folder).score_batch(TEXTS)])
        for folder in (bundle, tmp_path / "float")
    )
    difference = np.abs(scores - expected).mean()
    assert difference == pytest.approx(kept.mean_difference, abs=1e-5)
    result = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert "budget 0.05" in result.stdout
    for candidate in tuning.candidates:
        assert candidate.setting.split(",")[0] in result.stdout


def test_a_bundle_from_before_there_was_tuning_still_loads(sensitive, tmp_path):
    bundle = tmp_path / "bundle"
    export_bundle(*sensitive, bundle)
    manifest = json.loads((bundle / "guard.json").read_text())
    assert manifest.pop("tuning") is None
    (bundle / "guard.json").write_text(json.dumps(manifest))
    assert load_bundle(bundle).manifest.tuning is None


def test_matrices_named_to_stay_float32_do_and_unknown_names_are_refused(sensitive, tmp_path):
    keep_float = frozenset([LAYER])
    sizes = []
    for name, options in (("all", {}), ("mixed", {"keep_float": keep_float})):
        export_bundle(*sensitive, tmp_path / name, precision="int4", **options)
        sizes.append((tmp_path / name / "weights.bin").stat().st_size)
    assert sizes[0] < sizes[1]
    for precision, name in (("int8", "layers.9/mlp/down_proj/weight"), ("fp16", LAYER)):
        with pytest.raises(InputError, match=name):
            export_bundle(
                *sensitive, tmp_path / "no", precision=precision, keep_float=frozenset([name])
            )


@pytest.mark.parametrize(("budget", "texts"), [(-0.1, TEXTS), (float("nan"), TEXTS), (0.1, [])])
def test_what_cannot_be_tuned_by_is_refused(sensitive, tmp_path, budget, texts):
    with pytest.raises(InputError):
        tune(*sensitive, tmp_path / "bundle", budget=budget, texts=texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "auto", "--target", "tensorrt"], "--target onnxruntime; give tensorrt a"),
        (["--precision", "int8", "--budget", "0.1"], "--budget is for --precision auto"),
        (["--precision", "auto", "--budget", "2"], "--budget"),
    ],
)
def test_wrong_use_is_refused_before_any_work(tmp_path, arguments, message):
    words = ["export", "minilm", "-o", str(tmp_path / "bundle"), *arguments]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_the_command_tunes_on_the_calibration_file_and_keeps_the_table(sensitive, tmp_path):
    artifact, checkpoint = sensitive
    file = tmp_path / "chats.jsonl"
    rows = [{"prompt": text, "response": "Yes."} for text in TEXTS if text.strip()][:8]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    bundle = tmp_path / "bundle"
    words = ["export", artifact.path, "--backbone", checkpoint.path, "-o", bundle, "--no-verify"]
    words += ["--precision", "auto", "--budget", "1", "--calibration", file]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    tuning = load_bundle(bundle).manifest.tuning
    assert (tuning.budget, tuning.texts) == (1.0, 8)
    assert f"kept: {kept_candidate(tuning).setting}" in result.stderr
    assert load_bundle(bundle).manifest.precision == kept_candidate(tuning).precision


def test_a_calibration_file_may_be_plain_or_json_lines_and_its_bad_lines_are_named(tmp_path):
    file = tmp_path / "texts"
    file.write_text("one\n\ntwo\n", encoding="utf-8")
    assert read_calibration(file) == ["one", "two"]
    file.write_text('{"text": "one"}\n{"prompt": "two", "response": "three"}\n', encoding="utf-8")
    assert read_calibration(file) == ["one", "two\nthree"]
    for bad in (b'{"text": "one"}\n{"label": 1}\n', b"one\n\xff\n"):
        file.write_bytes(bad)
        with pytest.raises(InputError, match="line 2"):
            read_calibration(file)
