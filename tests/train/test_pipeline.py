"""A head trained from a store: repeatable, resumable, and an artifact that every runtime reads."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from labelled import Killed, make_rows
from reference import load_reference
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from siren_runtime.errors import InputError
from siren_runtime.text.rules import join
from siren_train.fit import pipeline, work_folder
from siren_train.fit.ablate import ablation_markdown
from siren_train.fit.folds import FOLDS, make_folds
from siren_train.fit.layer_probes import fit_fold_probes, fit_probes
from siren_train.fit.plots import plot_ablation, plot_layers
from siren_train.fit.probe import Probe
from siren_train.fit.report import TrainingReport, write_report
from siren_train.fit.search import CrossValidation
from siren_train.fit.settings import Settings
from siren_train.fit.splits import load_splits
from siren_train.store.features import FeatureSet
from siren_train.store.locks import locked
from siren_train.store.store import FeatureStore

SETTINGS = Settings(trials=3, members=2, half=False, strengths=(0.1, 0.01))


@pytest.fixture(scope="module")
def trained(
    store: FeatureStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainingReport]:
    """A head of the shared store, and its report."""
    folder = tmp_path_factory.mktemp("head")
    return folder, pipeline.train([store], folder, folder / ".work", SETTINGS, workers=2)


def head_bytes(folder: Path) -> bytes:
    return b"".join((folder / n).read_bytes() for n in ("siren_config.json", "siren.safetensors"))


def test_the_head_has_learned(trained: tuple[Path, TrainingReport]) -> None:
    assert trained[1].cross_validation > 0.75


def test_a_seed_gives_the_same_head_whatever_the_threads(
    store: FeatureStore, trained: tuple[Path, TrainingReport], tmp_path: Path
) -> None:
    pipeline.train([store], tmp_path, tmp_path / ".work", SETTINGS, workers=1)
    assert head_bytes(tmp_path) == head_bytes(trained[0])


# A stage, and how much of it is done. The search is in its second trial.
@pytest.mark.parametrize(
    "stop",
    [
        ("probes", 2),
        ("probes without fold 3", 1),
        ("search", FOLDS + 2),
        ("temperature", 2),
        ("final fit", 1),
    ],
)
def test_an_interrupted_training_ends_as_an_undisturbed_one(
    store: FeatureStore, trained: tuple[Path, TrainingReport], tmp_path: Path, stop: tuple[str, int]
) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        if stage == "search":
            assert total == SETTINGS.trials * FOLDS
        if (stage, done) == stop:
            raise Killed

    with pytest.raises(Killed):
        pipeline.train([store], tmp_path, tmp_path / ".work", SETTINGS, workers=2, progress=kill)
    assert not (tmp_path / "siren_config.json").exists()
    history = tmp_path / ".work" / "trials.jsonl"
    if history.exists():  # a kill may also cut the line that is being written
        history.write_bytes(history.read_bytes() + b'{"number": ')
    report = pipeline.train([store], tmp_path, tmp_path / ".work", SETTINGS, workers=2)
    assert head_bytes(tmp_path) == head_bytes(trained[0])
    assert report == trained[1]


def unheard(stage: str, done: int, total: int) -> None:
    """Take no notice of progress."""


def test_the_probes_of_a_fold_do_not_see_its_rows(store: FeatureStore, tmp_path: Path) -> None:
    train, validation = load_splits([store], SETTINGS)
    both = FeatureSet.concatenate(train, validation)
    folds = make_folds(both, FOLDS, 0, np.unique(both.datasets))
    probes = fit_probes(
        train,
        validation,
        tmp_path,
        strengths=[SETTINGS.strengths] * train.layers,
        workers=1,
        progress=unheard,
    )

    def of_folds(train: FeatureSet, name: str) -> list[list[Probe]]:
        work = tmp_path / name
        work.mkdir()
        return fit_fold_probes(train, validation, folds, probes, work, workers=1, progress=unheard)

    hidden = folds[: train.rows] == 0
    changed = replace(train, labels=np.where(hidden, 1 - train.labels, train.labels))
    found, expected = of_folds(changed, "changed"), of_folds(train, "as it is")
    for fold in range(FOLDS):
        same = [
            np.array_equal(a.weights, b.weights)
            for a, b in zip(found[fold], expected[fold], strict=True)
        ]
        assert all(same) if fold == 0 else not any(same)


def test_a_search_that_is_asked_for_more_trials_goes_on(
    store: FeatureStore, tmp_path: Path
) -> None:
    settings = msgspec.structs.replace(SETTINGS, trials=7)
    whole = pipeline.train([store], tmp_path / "whole", tmp_path / "whole" / "work", settings)
    for trials in (4, 6, 7):  # asking for more trials goes on with the same search
        settings = msgspec.structs.replace(SETTINGS, trials=trials)
        resumed = pipeline.train([store], tmp_path / "more", tmp_path / "work", settings)
    assert resumed.trials == whole.trials
    assert head_bytes(tmp_path / "more") == head_bytes(tmp_path / "whole")
    fewer = msgspec.structs.replace(SETTINGS, trials=4)
    again = pipeline.train([store], tmp_path / "fewer", tmp_path / "work", fewer)
    assert again.trials == whole.trials[:4]


def test_the_artifact_scores_alike_in_llm_siren_and_in_the_engine(
    trained: tuple[Path, TrainingReport], store: FeatureStore, tmp_path: Path
) -> None:
    artifact = load_artifact(trained[0])
    assert artifact.head.labels == ("safe", "harmful")
    manifest = export_bundle(artifact, load_checkpoint(artifact.model_id), tmp_path / "bundle")
    assert manifest.head.labels == ["safe", "harmful"]
    texts = [join(row["prompt"], row["response"]) for row in make_rows(40, seed=9)]
    expected = [result.score for result in load_reference(trained[0]).score_batch(texts)]
    found = [r.score for r in Guard.load(tmp_path / "bundle", backend="cpu").score_batch(texts)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_three_classes_go_from_store_to_verdict(
    make_store: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    store = make_store(classes=3, rows=300)
    pipeline.train([store], tmp_path / "head", tmp_path / "work", SETTINGS, workers=2)
    artifact = load_artifact(tmp_path / "head")
    assert artifact.head.labels == ("safe", "harmful", "odd")
    export_bundle(artifact, load_checkpoint(artifact.model_id), tmp_path / "bundle")
    guard = Guard.load(tmp_path / "bundle", backend="cpu")
    rows = [r for r in make_rows(300, classes=3, name="first") if r["split"] == "test"]
    scores = np.array(
        [r.score for r in guard.score_batch(join(r["prompt"], r["response"]) for r in rows)]
    )
    harmful = np.array([row["label"] == 1 for row in rows])
    assert roc_auc_score(harmful, scores) > 0.8


def test_rows_too_few_for_the_folds_are_named(
    store: FeatureStore, make_store: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    shutil.copytree(store.folder, tmp_path / "rare")
    labels = np.zeros(store.manifest.splits["train"], np.int64)
    labels[0] = 1
    np.save(tmp_path / "rare" / "train.labels.npy", labels)
    for small, message in (
        (FeatureStore.open(tmp_path / "rare"), "rare: the train rows of class 'harmful' are too"),
        (make_store(rows=10), "12 train and 4 validation rows are too few for 5 folds"),
    ):
        with pytest.raises(InputError, match=message):
            pipeline.train([small], tmp_path, tmp_path / ".work", SETTINGS)
    assert not (tmp_path / ".work").exists()


def test_two_trainings_at_once_do_not_share_a_work_folder(
    store: FeatureStore, trained: tuple[Path, TrainingReport]
) -> None:
    work = trained[0] / ".work"
    with (
        locked(work, "siren train"),
        pytest.raises(InputError, match="another siren train is at work here"),
    ):
        pipeline.train([store], trained[0], work, SETTINGS)


@pytest.mark.parametrize("data", [b"", b"half", b"PK\x03\x04half"])
@pytest.mark.parametrize("name", ["probe.1.npz", "logits.2.npz", "head.npz"])
def test_a_damaged_result_of_a_stage_is_named(
    store: FeatureStore,
    trained: tuple[Path, TrainingReport],
    tmp_path: Path,
    name: str,
    data: bytes,
) -> None:
    shutil.copytree(trained[0] / ".work", tmp_path / "work")
    (tmp_path / "work" / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}: not a readable \w+: .*; remove it"):
        pipeline.train([store], tmp_path, tmp_path / "work", SETTINGS)


def test_a_finished_training_trains_nothing_again_but_what_a_setting_changed(
    store: FeatureStore, trained: tuple[Path, TrainingReport], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(trained[0] / ".work", work)
    results = [work / "head.npz", *sorted(work.glob("logits.*.npz"))]
    assert len(results) == 1 + FOLDS

    def run(settings: Settings) -> tuple[bytes, list[bool]]:
        """The head, and which results were written anew."""
        before = [path.stat().st_mtime_ns for path in results]
        pipeline.train([store], tmp_path / "head", work, settings, workers=2)
        after = [path.stat().st_mtime_ns for path in results]
        return head_bytes(tmp_path / "head"), [a != b for a, b in zip(after, before, strict=True)]

    assert run(SETTINGS) == (head_bytes(trained[0]), [False] * len(results))
    held_out = msgspec.structs.replace(SETTINGS, hold_out_validation=True)
    head, anew = run(held_out)
    assert head != head_bytes(trained[0])
    assert anew == [True] + [False] * FOLDS
    assert run(msgspec.structs.replace(held_out, members=1))[1] == [True] * len(results)


def test_max_layer_reads_the_first_layers_only(store: FeatureStore, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, max_layer=1, trials=1)
    pipeline.train([store], tmp_path, tmp_path / ".work", settings)
    assert load_artifact(tmp_path).head.taps.deepest == 0


def test_a_layer_that_the_backbone_lacks_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, max_layer=99)
    with pytest.raises(InputError, match="max_layer is 99"):
        pipeline.train([store], tmp_path, tmp_path / ".work", settings)


def test_the_work_of_another_run_is_not_taken_over(
    store: FeatureStore, trained: tuple[Path, TrainingReport]
) -> None:
    settings = msgspec.structs.replace(SETTINGS, seed=1)
    with pytest.raises(InputError, match="the work of a run with other settings"):
        pipeline.train([store], trained[0], trained[0] / ".work", settings)


def test_the_work_on_features_of_another_engine_is_not_taken_over(
    store: FeatureStore, trained: tuple[Path, TrainingReport]
) -> None:
    engines = dict.fromkeys(store.manifest.engines, "0" * 64)
    other = FeatureStore(store.folder, msgspec.structs.replace(store.manifest, engines=engines))
    with pytest.raises(InputError, match="the work of a run with other settings, features"):
        pipeline.train([other], trained[0], trained[0] / ".work", SETTINGS)


def test_the_work_of_another_release_is_not_taken_over(
    store: FeatureStore, trained: tuple[Path, TrainingReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_folder, "WORK_VERSION", work_folder.WORK_VERSION + 1)
    with pytest.raises(InputError, match="another with --work"):
        pipeline.train([store], trained[0], trained[0] / ".work", SETTINGS)


def test_what_the_stages_do_not_depend_on_may_change(
    store: FeatureStore, trained: tuple[Path, TrainingReport], tmp_path: Path
) -> None:
    settings = msgspec.structs.replace(SETTINGS, threshold=0.25, half=True)
    report = pipeline.train([store], tmp_path, trained[0] / ".work", settings)
    assert report.trials == trained[1].trials
    assert load_artifact(tmp_path).threshold == 0.25


def test_an_ablation_is_of_the_head_that_was_chosen(store: FeatureStore, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, trials=1)
    work = tmp_path / ".work"
    pipeline.train([store], tmp_path, work, settings)
    first = pipeline.ablate([store], work, settings, workers=2)
    # Which of two real trials wins depends on the CPU's rounding; here the second does.
    history = work / "trials.jsonl"
    trial = json.loads(history.read_text())
    share = min(settings.shares, key=lambda share: share == trial["params"]["share"])
    better = {**trial, "number": 1, "params": {**trial["params"], "share": share}}
    worse = {**trial, "scores": [0.0] * len(trial["scores"])}
    history.write_text(json.dumps(worse) + "\n" + json.dumps(better) + "\n")
    more = msgspec.structs.replace(SETTINGS, trials=2)
    pipeline.train([store], tmp_path, work, more)
    second = pipeline.ablate([store], work, more, workers=2)
    assert first[0].name == second[0].name == "as chosen"
    assert first[0].features != second[0].features


def test_reports_and_pictures_are_written(
    store: FeatureStore, trained: tuple[Path, TrainingReport], tmp_path: Path
) -> None:
    folder, report = trained
    write_report(report, tmp_path)
    plot_layers(report, tmp_path / "layers.png")
    results = pipeline.ablate([store], folder / ".work", SETTINGS, workers=2)
    plot_ablation(results, tmp_path / "ablation.png")
    groups = {result.group for result in results}
    assert groups == {"head", "layer weights", "share", "depth", "single layer"}
    assert len(ablation_markdown(results).splitlines()) == len(results) + 6
    assert json.loads((tmp_path / "training.json").read_text())["settings"]["seed"] == 0
    for name in ("layers.png", "ablation.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_head_is_trained_on_every_precision_and_measured_on_the_first(
    store: FeatureStore, tmp_path: Path
) -> None:
    shutil.copytree(store.folder, tmp_path / "int8")
    manifest = json.loads((tmp_path / "int8" / "store.json").read_text())
    manifest |= {"precision": "int8", "engines": {"residual_mean": "0" * 64}}
    (tmp_path / "int8" / "store.json").write_text(json.dumps(manifest))
    other = FeatureStore.open(tmp_path / "int8")
    settings = msgspec.structs.replace(SETTINGS, trials=1)
    report = pipeline.train([store, other], tmp_path / "head", tmp_path / "work", settings)
    assert report.precisions == ["fp32", "int8"]
    once = store.manifest.splits["train"] + store.manifest.splits["validation"]
    assert (sum(report.rows.values()), report.copies) == (2 * once, once)
    alone = pipeline.train([store], tmp_path / "alone", tmp_path / "work-alone", settings)
    # Rows that stand there twice change neither means nor what a probe fits.
    for both, single in zip(report.layers, alone.layers, strict=True):
        assert both.macro_f1 == pytest.approx(single.macro_f1, abs=0.05)


def test_rows_of_several_stores_are_in_memory_once(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[FeatureSet] = []

    def probe(train: FeatureSet, validation: FeatureSet, *_: object, **__: object) -> None:
        seen.extend([train, validation])

    def search(setup: CrossValidation, *_: object, **__: object) -> None:
        seen.append(setup.features)
        raise Killed

    monkeypatch.setattr(pipeline, "fit_fold_probes", probe)
    monkeypatch.setattr(pipeline, "search_head", search)
    with pytest.raises(Killed):
        pipeline.train([store, store], tmp_path / "head", tmp_path / "work", SETTINGS)
    train, validation, everything = seen
    joined = np.concatenate([train.pooled, validation.pooled])
    np.testing.assert_array_equal(joined, everything.pooled)
    assert np.shares_memory(train.pooled, everything.pooled)
    assert np.shares_memory(validation.pooled, everything.pooled)


def test_stores_of_other_rows_are_not_mixed(
    store: FeatureStore, make_store: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="hold the same rows, but splits is"):
        pipeline.train([store, make_store(rows=60)], tmp_path, tmp_path / "work", SETTINGS)
