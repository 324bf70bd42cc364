"""Attention that looks back no further than a window: exact beyond it, and no more is kept."""

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backbones import MAX_LENGTH
from guards import load_guard
from reference import load_reference
from siren_export.families.registry import parse_config
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.bundle.graphs import CacheSpec
from siren_runtime.errors import BundleError
from siren_runtime.streaming.growing_text import Tokens
from siren_runtime.streaming.reader import IncrementalReader
from siren_runtime.streaming.state import StreamState
from siren_runtime.text.deadline import NO_DEADLINE
from streaming import BOUND, LIMIT
from texts import CORPUS

WINDOWED = ("mistral-short-window", "qwen2-window", "qwen3-window", "gemma2", "gemma3")
TEXT = " ".join(CORPUS)


@pytest.mark.parametrize("pooling", ["residual_mean", "mlp_mean"])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_stream_crosses_its_windows_as_the_reference_does(export, guards, name, pooling):
    options = {"max_length": LIMIT, "pooling": pooling}
    _, streaming = guards(name, pooling=pooling)
    reference = load_reference(export(name, **options).artifact)
    ids = streaming.scorers[0].tokenizer.encode(TEXT).ids[:LIMIT]
    assert len(ids) == LIMIT
    with streaming.stream() as stream:
        for start in range(0, LIMIT, 16):
            result = stream.feed_tokens(ids[start : start + 16])
    assert result.tokens == LIMIT
    assert result.score == pytest.approx(reference.score(TEXT).score, abs=1e-4)


@pytest.mark.parametrize("name", WINDOWED)
def test_a_window_of_the_checkpoint_decides_the_score(export, backbone_folder, name):
    """Else agreement beyond it would say nothing."""
    folder = backbone_folder(name)
    config = load_checkpoint(folder).config
    windows = parse_config(config, "config.json").windows
    assert windows
    assert max(windows.values()) < MAX_LENGTH
    reference = load_reference(export(name).artifact)
    narrow = reference.score(TEXT).score
    model = reference._backbone.config
    model.sliding_window = 4 * LIMIT
    for module in reference._backbone.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = 4 * LIMIT
    assert abs(reference.score(TEXT).score - narrow) > 1e-3


@pytest.mark.parametrize("name", WINDOWED)
def test_blocks_with_a_window_keep_no_more_than_a_ring(guards, name):
    _, streaming = guards(name)
    backend = streaming.scorers[0].stream_backend
    ids = streaming.scorers[0].tokenizer.encode(TEXT).ids[:LIMIT]
    memory = []
    with streaming.stream() as stream:
        for token in ids:
            stream.feed_tokens([token])
            memory.append(stream.memory_bytes - stream.session.tracks[0].state.bytes)
    spec = backend.cache
    assert set(spec.lengths(LIMIT)) <= {48, LIMIT}
    whole = LIMIT * spec.bytes_per_token
    kept = (1 - len(spec.windows) / spec.blocks) + len(spec.windows) / spec.blocks * 48 / LIMIT
    assert memory[-1] == pytest.approx(kept * whole)
    if len(spec.windows) == spec.blocks:
        assert memory[-1] == memory[60]  # and so it stays


EDITS = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 50)), min_size=2, max_size=8)


@pytest.mark.parametrize("name", ["mistral-short-window", "gemma3"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(edits=EDITS, seed=st.integers(0, 1000))
def test_tokens_taken_back_any_number_at_a_time_leave_the_scores_exact(guards, name, edits, seed):
    """Each edit takes tokens back and puts others behind what is left."""
    guard, streaming = guards(name)
    backend, rng = streaming.scorers[0].stream_backend, np.random.default_rng(seed)
    reader = IncrementalReader(backend, LIMIT, streaming.scorers[0].readout)
    state, ids = StreamState(backend.neurons, None), [5]
    reader.add(state)
    for taken_back, added in edits:
        kept = ids[: max(1, len(ids) - taken_back)]
        ids = (kept + rng.integers(5, 380, added).tolist())[:LIMIT]
        state.set_tokens(Tokens(ids, [(0, 0)] * len(ids)), LIMIT, reader.usable)
        assert not reader.read({state: NO_DEADLINE})
        expected = guard.scorers[0].backend.run(np.array([ids]), np.ones((1, len(ids)), np.int64))
        assert state.scores[-1] == pytest.approx(expected.score[0], abs=BOUND)


def test_a_ring_is_read_anew_only_where_it_lost_what_is_needed():
    spec = CacheSpec(2, 1, 8, "float32", {0: 8})
    assert spec.lengths(30) == [30] * 4
    assert spec.lengths(100) == [48, 48, 100, 100]
    assert spec.usable(3, 48) == 3  # nothing was written over
    assert spec.usable(100 - 41, 100) == 59
    assert spec.usable(100 - 42, 100) == 0
    assert CacheSpec(2, 1, 8, "float32").usable(1, 10_000) == 1


@pytest.mark.parametrize("written", ["window_4", "window_08", "past", "window_80000000000"])
def test_a_manifest_of_other_windows_than_the_graphs_is_refused(export, tmp_path, written):
    """A ring of another size would drop tokens that the graph looks for."""
    exported = export("gemma3", max_length=LIMIT).bundle
    bundle = shutil.copytree(exported, tmp_path / "bundle")
    manifest = (bundle / "guard.json").read_text()
    assert "window_8" in manifest
    (bundle / "guard.json").write_text(manifest.replace("window_8", written))
    with pytest.raises(BundleError, match="window_8"):
        load_guard(bundle, threads=1, streaming=True)
