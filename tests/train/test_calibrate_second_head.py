"""siren calibrate of a head beside one that has thresholds of spans."""

import json
from collections.abc import Callable
from pathlib import Path

from labelled import make_rows, write_jsonl
from models import make_artifact
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint


def test_spans_of_a_head_count_where_another_alone_has_thresholds_of_them(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    backbone = backbone_folder("qwen3")
    heads = {
        name: load_artifact(make_artifact(tmp_path / name, backbone, layers=[1], seed=seed))
        for seed, name in enumerate(("first", "second"))
    }
    bundle = tmp_path / "bundle"
    export_bundle(together(heads), load_checkpoint(backbone), bundle)
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(40))
    assert siren("calibrate", bundle, "--spans", "0.9").exit_code == 0
    rule = "--spans", "fpr:0.2", "--diluted", "36", "--threads", 1
    done = siren("calibrate", bundle, data, "--head", "second", *rule)
    assert done.exit_code == 0, done.output
    assert "longer than 32 tokens" not in done.stderr
    manifest = json.loads((bundle / "guard.json").read_text())
    assert {span["threshold"] for span in manifest["spans"]} == {0.9}
    shortest = manifest["decisions"]["second"]["spans"][0]
    assert shortest["tokens"] == 32
    assert shortest["threshold"] < 1
