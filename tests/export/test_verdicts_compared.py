"""Verdicts are compared as the guard gives them: heads of labels go by each label's threshold."""

import json
from operator import ne
from pathlib import Path

import pytest

from guards import load_guard
from models import make_labels
from siren_export.export import export_bundle
from siren_export.heads.base import Artifact
from siren_export.heads.registry import load_artifact
from siren_export.passes.table import Bound
from siren_export.sources.checkpoint import Checkpoint, load_checkpoint
from siren_export.tune import tune as tune_module
from siren_export.tune.tune import tune
from siren_export.verify.reference import Reference
from siren_export.verify.scores import verify_scores
from siren_export.verify.texts import TEXTS
from siren_runtime.bundle.progress import silent

LABELS = ("hate", "self-harm", "violence")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, backbone_folder) -> tuple[Artifact, Checkpoint]:
    """A head of labels whose own threshold no score reaches; each label has a lower one."""
    backbone = backbone_folder("qwen3")
    folder = make_labels(
        tmp_path_factory.mktemp("labels") / "head", backbone, layers=[1, 2], labels=LABELS
    )
    path = folder / "siren_config.json"
    config = json.loads(path.read_text())
    config["inference"]["default_threshold"] = 0.999
    config["inference"]["labels"] = {name: {"threshold": 0.5} for name in LABELS}
    path.write_text(json.dumps(config))
    return load_artifact(folder), load_checkpoint(backbone)


@pytest.mark.parametrize(("probability", "harmful"), [(0.49, False), (0.51, True)])
def test_a_report_counts_the_verdicts_that_labels_make(
    labelled: tuple[Artifact, Checkpoint], tmp_path: Path, probability: float, harmful: bool
) -> None:
    artifact, checkpoint = labelled
    export_bundle(artifact, checkpoint, tmp_path / "bundle", stream=False)
    guard = load_guard(tmp_path / "bundle")
    rows = [[probability] * (1 + len(LABELS))] * len(TEXTS)
    scores = [probability] * len(TEXTS)
    reference = Reference("made up", "", "", scores, rows={artifact.name: rows})
    report = verify_scores(guard, reference, Bound(1.0, "max"), silent)
    same = [result.is_harmful == harmful for result in guard.score_batch(list(TEXTS))]
    assert report.verdict_agreement == pytest.approx(sum(same) / len(same))
    assert 0 < report.verdict_agreement < 1


def test_tuning_counts_the_verdicts_that_the_guard_changes(
    labelled: tuple[Artifact, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_module, "time_in_turns", lambda guards, *_: [1.0] * len(guards))
    tuning = tune(*labelled, tmp_path / "tuned", budget=1.0, texts=TEXTS)
    found = {candidate.precision: candidate.changed_verdicts for candidate in tuning.candidates}
    verdicts = {}
    for precision in ("fp32", "int4"):
        export_bundle(*labelled, tmp_path / precision, precision=precision, stream=False)
        results = load_guard(tmp_path / precision).score_batch(list(TEXTS))
        verdicts[precision] = [result.is_harmful for result in results]
    assert found["fp32"] == 0
    assert found["int4"] == sum(map(ne, verdicts["fp32"], verdicts["int4"])) > 0
