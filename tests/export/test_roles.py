"""What each matrix does in its block is noted as the graph is authored."""

from collections import Counter

import pytest

from backbones import DECODERS, ENCODERS
from models import make_artifact
from siren_export.families.registry import parse_config
from siren_export.graph.builder import FLOAT
from siren_export.guard.score import author_score
from siren_export.heads.registry import load_artifact
from siren_export.passes.edit import linears
from siren_export.sources.checkpoint import load_checkpoint

ATTENTION = ("query", "key", "value", "attention_output")
GATED = (*ATTENTION, "mlp_gate", "mlp_up", "mlp_down")
PLAIN = (*ATTENTION, "mlp_up", "mlp_down")


@pytest.fixture
def author(tmp_path, backbone_folder):
    def run(name):
        artifact = load_artifact(make_artifact(tmp_path / "head", backbone_folder(name)))
        checkpoint = load_checkpoint(backbone_folder(name))
        backbone = parse_config(checkpoint.config, checkpoint.source)
        return author_score(artifact, backbone, checkpoint.weights, FLOAT)

    return run


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        *((name, GATED) for name in (*DECODERS, "llama", "mistral", "modernbert")),
        *((name, PLAIN) for name in ENCODERS if name != "modernbert"),
    ],
)
def test_every_matrix_of_every_family_has_a_role_once_a_block(author, name, roles):
    graph = author(name)
    found = Counter(linear.role for linear in linears(graph))
    assert found == dict.fromkeys(roles, 4)
    assert graph.causal == (name not in ENCODERS)


def test_biases_are_found_with_their_linears(author):
    biased = {linear.name for linear in linears(author("qwen2")) if linear.bias is not None}
    assert biased == {f"layers.{n}/self_attn/{p}_proj" for n in range(4) for p in ("q", "k", "v")}
