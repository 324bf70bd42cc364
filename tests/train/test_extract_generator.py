"""Features of a generator come from its own engine, and heads say so."""

from pathlib import Path

import numpy as np
import pytest

from backbones import BackboneSpec
from generators import make_generator, need_genai, open_pool
from labelled import make_rows, write_jsonl
from models import make_backbone
from siren_export.heads.selected import MeanPooling
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.errors import InputError
from siren_runtime.generation.folder import read_folder
from siren_train.data.rows import Columns, read_rows
from siren_train.data.sources import parse_source
from siren_train.store.extract import extract
from siren_train.store.generator import open_generator
from siren_train.store.store import FeatureStore, extractor_folder

need_genai()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A backbone and its generator."""
    folder = tmp_path_factory.mktemp("qwen2")
    backbone = make_backbone(folder / "backbone", BackboneSpec("qwen2"))
    return backbone, make_generator(backbone, folder / "genai", "fp32", "cpu")


def _extract(
    source: object, data: Path, output: Path, pooling: MeanPooling = "residual_mean"
) -> FeatureStore:
    sources = [parse_source(str(data))]
    return extract(
        sources, Columns(), source, output, model_id="tiny", threads=1, poolings=(pooling,),  # type: ignore[arg-type]
        max_length=40,
    )  # fmt: skip


@pytest.mark.parametrize("pooling", ["residual_mean", "mlp_mean"])
def test_plain_text_has_the_features_that_the_exported_backbone_gives(
    pooling: MeanPooling, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    backbone, genai = folders
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(12))
    ours = _extract(open_generator(str(genai), "plain"), data, tmp_path / "ours", pooling)
    theirs = _extract(load_checkpoint(str(backbone)), data, tmp_path / "theirs", pooling)
    found, expected = (store.array("train", pooling) for store in (ours, theirs))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert ours.manifest.generator is not None
    assert ours.manifest.generator.engine == ours.manifest.backbone_sha256
    assert ours.manifest.precision == "fp32"
    with pytest.raises(InputError, match="other settings"):
        _extract(open_generator(str(genai), "chat"), data, tmp_path / "ours", pooling)


def test_a_store_names_the_extractor_that_pooled_it(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(12))
    generator = open_generator(str(folders[1]), "plain")
    store = _extract(generator, data, tmp_path / "store")
    extractor = read_folder(extractor_folder(store.folder, "residual_mean"))
    assert store.manifest.engines == {"residual_mean": extractor.digest()}
    assert _extract(generator, data, tmp_path / "store").manifest == store.manifest


def test_in_a_conversation_the_prompt_is_the_users_and_the_response_follows(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    generator = open_generator(str(folders[1]), "chat")
    fields = [
        {"prompt": "Hello there", "response": "How are you?", "label": 0, "split": "train"},
        {"text": "Hello there", "label": 1, "split": "train"},
    ]
    rows = list(read_rows(parse_source(str(write_jsonl(tmp_path / "d.jsonl", fields))), Columns()))
    pool = open_pool(generator, tmp_path / "extractor", 512)
    with_response, alone = pool.pool(rows)
    plain = open_pool(open_generator(str(folders[1]), "plain"), tmp_path / "extractor-plain", 512)
    markup = "<user> Hello there\n<assistant> "
    texts = [{"text": t, "label": 0, "split": "train"} for t in (markup + "How are you?", markup)]
    asked = list(read_rows(parse_source(str(write_jsonl(tmp_path / "e.jsonl", texts))), Columns()))
    expected = plain.pool(asked)
    np.testing.assert_array_equal(with_response, expected[0])
    assert not np.array_equal(alone, expected[0])
