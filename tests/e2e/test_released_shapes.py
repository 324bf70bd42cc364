"""The released heads' true shapes, with random weights; whole backbones of them are bench/'s."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from guards import load_guard
from reference import load_reference
from siren_bench.subjects.shapes import SHAPES
from siren_bench.subjects.subject import synthesize
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint

TEXT = "How do I bake bread at home without a mixer?"

BLOCKS = 6  # of 28: each is like the others
NEEDED_DISK = 4_000_000_000
NEEDED_MEMORY = 4_000_000_000


@pytest.mark.parametrize(
    ("name", "millions"),
    [("qwen3-0.6b", 12.3), ("llama-3.2-1b", 5.4), ("qwen3-4b", 14.0), ("llama-3.1-8b", 56.0)],
)
def test_heads_have_the_released_number_of_parameters(name, millions):
    assert round(SHAPES[name].head_parameters / 1e6, 1) == millions


@pytest.fixture
def roomy_folder(tmp_path):
    """A folder that is removed at once after the test, on a machine with room for it."""
    free = shutil.disk_usage(tmp_path).free
    if free < NEEDED_DISK:
        pytest.skip(f"needs {NEEDED_DISK / 1e9:.0f} GB of disk, {free / 1e9:.1f} GB are free")
    available = _available_memory()
    if available < NEEDED_MEMORY:
        pytest.skip(
            f"needs {NEEDED_MEMORY / 1e9:.0f} GB of memory, {available / 1e9:.1f} GB are available"
        )
    folder = tmp_path / "true-shape"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_blocks_of_the_06b_shape_export_load_and_agree(roomy_folder):
    true = SHAPES["qwen3-0.6b"]
    shape = replace(true, config={**true.config, "num_hidden_layers": BLOCKS})
    made = synthesize(shape, roomy_folder)
    bundle = roomy_folder / "bundle"
    manifest = export_bundle(load_artifact(made.head), load_checkpoint(made.backbone), bundle)
    assert manifest.head.features == shape.features
    assert manifest.backbone.blocks_kept == manifest.backbone.blocks == shape.layers
    with load_guard(bundle, threads=2) as guard:
        score = guard.score(TEXT).score
    assert 0.01 < score < 0.99  # else agreement would mean little
    assert score == pytest.approx(load_reference(made.head).score(TEXT).score, abs=1e-4)


def _available_memory() -> int:
    """Return the bytes of memory that a new process may take; zero where that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024
