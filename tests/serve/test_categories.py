"""A guard with labels behind HTTP: OpenAI's categories by the bundle's table, and all results."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from models import LABELS, make_artifact, make_labels
from served import Running, running
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from siren_runtime.bundle.heads import OPENAI_KEYS
from texts import CORPUS

ROUNDING = 1e-6
TEXTS = [text for text in CORPUS if text.strip()][:6]
COVERED = {"hate": ["hate"], "violence": ["violence", "hate"]}


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Path:
    folder, backbone = tmp_path_factory.mktemp("labels"), backbone_folder("qwen3")
    kinds = make_labels(folder / "kinds", backbone, layers=[0, 1])
    config = json.loads((kinds / "siren_config.json").read_text())
    config["openai_categories"] = {key: COVERED.get(key, []) for key in OPENAI_KEYS}
    (kinds / "siren_config.json").write_text(json.dumps(config))
    harm = load_artifact(make_artifact(folder / "harm", backbone, layers=[1]))
    artifact = together({"harm": harm, "kinds": load_artifact(kinds)})
    export_bundle(artifact, load_checkpoint(backbone), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Running]:
    with running({"labels": str(bundle)}) as served:
        yield served


def test_openais_client_gets_its_own_categories_and_none_that_no_label_covers(
    server: Running, bundle: Path
) -> None:
    guard = Guard.load(bundle, threads=1)
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    for text, found in zip(TEXTS, client.moderations.create(input=TEXTS).results, strict=True):
        expected = guard.score(text)
        head = expected.heads["kinds"]
        assert found.category_scores.hate == pytest.approx(head.categories["hate"], abs=ROUNDING)
        larger = max(head.categories["hate"], head.categories["violence"])
        assert found.category_scores.violence == pytest.approx(larger, abs=ROUNDING)
        assert found.categories.hate is ("hate" in head.flagged)
        assert found.categories.sexual is None  # unknown, which is not "none"
        assert found.flagged is bool(
            expected.is_harmful or {"hate", "violence"} & set(head.flagged)
        )
        applied = found.category_applied_input_types.to_dict(mode="json")
        assert set(applied) == {*OPENAI_KEYS, "harmful"}
        assert {key for key, types in applied.items() if types} == {"harmful", *COVERED}


def test_results_and_streams_carry_all_heads(server: Running, bundle: Path) -> None:
    answer = server.client.post("/v1/score", json={"text": TEXTS[0]}).json()
    expected = Guard.load(bundle, threads=1).score(TEXTS[0])
    assert set(answer["heads"]) == {"harm", "kinds"}
    assert set(answer["categories"]) == set(LABELS)
    assert answer["flagged"] == list(expected.flagged)
    assert answer["heads"]["kinds"]["score"] == pytest.approx(
        expected.heads["kinds"].score, abs=ROUNDING
    )
