"""A checkpoint whose files were changed is scored as llm-siren scores it, or refused by name.

Seeds are fixed, one a checkpoint; SIREN_MUTATIONS says how many there are.
"""

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from siren_guard import SirenGuard

from backbones import BACKBONES, BackboneSpec
from guards import load_guard
from models import make_artifact, make_backbone
from mutations import NEW_TOKENS, draft_of, mutate
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.tokens import compare_tokens
from siren_runtime import Guard
from siren_runtime.errors import InputError, SirenError

COUNT = int(os.environ.get("SIREN_MUTATIONS", "200"))
BASES = ("qwen3", "qwen2", "llama", "llama-4", "llama-llama3-rope", "mistral", "bert")
VOCABULARY = 400  # some rows more than the tokenizers have tokens, for those that are declared
BOUND = 1e-4
TEXTS = [
    "",
    "Hello",
    "How do I bake bread at home?",
    "The QUICK brown Fox, café and CAFÉ; 你好 世界",
    *(f"before {token} after{token}again {token}" for token in NEW_TOKENS),
    "<|reserved_token_0|> and [SEP] and <unk> or [MASK]x",
    "foxes in boxes, bread and Breadcrumbs",
    " ".join(f"Item {n} of a list." for n in range(40)),
]

Inputs = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A base's folder and that of a head for it."""

    @cache
    def make(name: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(f"mutated-{name}")
        spec: BackboneSpec = BACKBONES[name]
        spec = replace(spec, config={**spec.config, "vocab_size": VOCABULARY})
        backbone = make_backbone(folder / "backbone", spec)
        return backbone, make_artifact(folder / "head", backbone)

    return make


def score_or_none(guard: Guard | SirenGuard, text: str) -> float | None:
    """The score, or None where the tokenizer makes nothing of a blank text, or cannot pad."""
    try:
        return float(guard.score(text).score)
    except (InputError, RuntimeError, ValueError):
        return None


def reference_scores(head: Path, backbone: Path, folder: Path) -> list[float | None]:
    """llm-siren's, as its users load it: code that the checkpoint names is trusted."""
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    config = json.loads((head / "siren_config.json").read_bytes())
    config["base_model"] = {"model_id": str(backbone), "revision": None}
    folder.mkdir()
    (folder / "siren_config.json").write_text(json.dumps(config))
    (folder / "siren.safetensors").symlink_to(head / "siren.safetensors")
    guard = SirenGuard.from_pretrained(str(folder), device="cpu", dtype=torch.float32)
    return [score_or_none(guard, text) for text in TEXTS]


def outcome(folder: Path, inputs: Inputs, seed: int | None) -> str:
    """Mutate, export and compare; fail where the export differs or a refusal names nothing."""
    rng = random.Random(seed)
    base, head = inputs(rng.choice(BASES))
    draft = draft_of(base)
    times = 0 if seed is None else rng.choice((1, 1, 1, 2))
    words = [word for _ in range(times) for word in mutate(draft, rng)]
    backbone = draft.write(folder / "backbone")
    try:
        checkpoint = load_checkpoint(backbone)
        export_bundle(load_artifact(head), checkpoint, folder / "bundle", stream=False)
    except SirenError as error:
        assert any(word in str(error) for word in words), (words, error)  # noqa: PT017
        return "refused"
    tokens = compare_tokens(checkpoint, TEXTS)
    if tokens is not None:
        assert any(word in tokens for word in words), (words, tokens)
        return "refused by its tokens, as a verified export is"
    guard = load_guard(folder / "bundle")
    expected = reference_scores(head, backbone, folder / "reference")
    if set(expected) == {None}:
        return "llm-siren cannot score it"
    ours = [score_or_none(guard, text) for text in TEXTS]
    assert ours == pytest.approx(expected, abs=BOUND), words
    return "equal"


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_mutated_checkpoint_is_scored_as_llm_siren_does_or_refused_by_name(
    tmp_path: Path, inputs: Inputs, seed: int
) -> None:
    assert outcome(tmp_path, inputs, seed)


def test_what_was_not_mutated_is_equal(tmp_path: Path, inputs: Inputs) -> None:
    assert outcome(tmp_path, inputs, None) == "equal"
