"""The length that a config.json or a GGUF header names: what is absurd is refused, and what hardly
anyone can use costs nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gguf_files import write_gguf
from guards import load_guard
from models import make_artifact
from siren_export.export import export_bundle
from siren_export.families.registry import backbone_of, parse_config
from siren_export.guard.stream import LONGEST_STREAM, context_length
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.errors import CheckpointError, InputError

Folders = Callable[[str], Path]
Source = Callable[[Path, Path, int], Path]


def folder_of(backbone: Path, place: Path, context: int) -> Path:
    """A copy of a backbone whose config.json names another length."""
    shutil.copytree(backbone, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}))
    return place


def file_of(backbone: Path, place: Path, context: int) -> Path:
    """A GGUF file of a backbone whose header names another length."""
    values = {"llama.context_length": context}
    return write_gguf(place.with_suffix(".gguf"), backbone, values=values)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "olmo2", "phi3", "granite", "smollm3"])
def test_an_absurd_length_is_refused_by_key_and_value(model_type: str) -> None:
    config = {"model_type": model_type, "vocab_size": 100, "hidden_size": 64}
    config |= {"intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "max_position_embeddings": 2**31 - 1}
    with pytest.raises(CheckpointError, match=r"max_position_embeddings`; found 2147483647"):
        parse_config(config, "config.json")
    parse_config({**config, "max_position_embeddings": 10 << 20}, "config.json")


@pytest.mark.parametrize("context", [(1 << 24) + 1, 2**31 - 1, 2**32 - 1])
def test_an_absurd_length_of_a_header_is_refused_by_key_and_value(
    context: int, backbone_folder: Folders, tmp_path: Path
) -> None:
    path = file_of(backbone_folder("llama"), tmp_path / "model", context)
    with pytest.raises(CheckpointError, match=rf"llama\.context_length is {context}; .*16,777,216"):
        load_checkpoint(path)


@pytest.mark.parametrize("source", [folder_of, file_of])
def test_a_stream_is_no_longer_than_anyone_can_use(
    source: Source, backbone_folder: Folders, tmp_path: Path
) -> None:
    """Its tables are not made for five million tokens, and its scores are what they were."""
    backbone = backbone_folder("llama")
    head = load_artifact(str(make_artifact(tmp_path / "head", backbone)))
    long = load_checkpoint(source(backbone, tmp_path / "long", 5_000_000))
    manifest = export_bundle(head, long, tmp_path / "bundle")
    assert manifest.backbone.context_length == LONGEST_STREAM
    tables = 2 * LONGEST_STREAM * 8 * 4  # of 8 pairs of channels in float32
    plain = export_bundle(head, load_checkpoint(backbone), tmp_path / "plain").files
    grown = manifest.files["weights.bin"].size - plain["weights.bin"].size
    assert 0 < grown < tables
    ours, theirs = load_guard(tmp_path / "bundle"), load_guard(tmp_path / "plain")
    with ours.stream() as stream, theirs.stream() as expected:
        assert stream.feed("How do I bake bread?") == expected.feed("How do I bake bread?")
    with pytest.raises(InputError, match=rf"max_tokens must be .* to {LONGEST_STREAM}"):
        ours.stream(max_tokens=LONGEST_STREAM + 1)


def test_a_stream_holds_what_the_head_reads_at_once(
    backbone_folder: Folders, tmp_path: Path
) -> None:
    head = load_artifact(str(make_artifact(tmp_path / "head", backbone_folder("llama"))))
    long = load_checkpoint(folder_of(backbone_folder("llama"), tmp_path / "long", 5_000_000))
    for limit in (LONGEST_STREAM - 1, LONGEST_STREAM + 1):
        found = context_length(replace(head, max_length=limit), backbone_of(long))
        assert found == max(limit, LONGEST_STREAM)
