"""A checkpoint whose files were changed is scored as llm-siren scores it, or refused by name.

Seeds are fixed, one a checkpoint; SIREN_MUTATIONS says how many there are about.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError
from siren_guard import SirenGuard

from backbones import BACKBONES, BackboneSpec
from guards import load_guard
from models import make_artifact, make_backbone
from mutations import NEW_TOKENS, draft_of, mutate
from reference import load_reference
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.tokens import compare_tokens
from siren_runtime import Guard
from siren_runtime.errors import InputError, SirenError

BASES = (
    "qwen3", "qwen2", "llama", "llama-4", "llama-llama3-rope", "mistral", "gemma2", "gemma3",
    "gemma3-4", "granite", "smollm3", "olmo2", "phi3", "phi3-longrope-4", "bert", "roberta",
    "modernbert", "deberta",
)  # fmt: skip
SEEDS = -(-int(os.environ.get("SIREN_MUTATIONS", "200")) // len(BASES))  # of each base
LEAST = SEEDS // 6  # checkpoints of a base that are equal, and that are refused
# Those that llm-siren itself does not load, since they are no causal models by name.
MASKED = ("modernbert", "deberta")
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


def reference_scores(
    head: Path, backbone: Path, folder: Path, *, masked: bool
) -> list[float | None] | None:
    """llm-siren's, as its users load it: code that the checkpoint names is trusted.

    None where transformers cannot load the checkpoint.
    """
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    config = json.loads((head / "siren_config.json").read_bytes())
    config["base_model"] = {"model_id": str(backbone), "revision": None}
    folder.mkdir()
    (folder / "siren_config.json").write_text(json.dumps(config))
    (folder / "siren.safetensors").symlink_to(head / "siren.safetensors")
    try:
        if masked:
            guard: SirenGuard = load_reference(folder)
        else:
            guard = SirenGuard.from_pretrained(str(folder), device="cpu", dtype=torch.float32)
    except (StrictDataclassFieldValidationError, AssertionError, TypeError):
        return None
    return [score_or_none(guard, text) for text in TEXTS]


def outcome(folder: Path, inputs: Inputs, name: str, seed: int | None) -> str:
    """Mutate, export and compare; fail where the export differs or a refusal names nothing.

    Args:
        seed: None leaves the checkpoint as it is.
    """
    base, head = inputs(name)
    draft, rng = draft_of(base), random.Random(f"{name}-{seed}")
    times = 0 if seed is None else rng.choice((1, 1, 1, 2))
    words = [word for _ in range(times) for word in mutate(draft, rng)]
    backbone = draft.write(folder / "backbone")
    try:
        checkpoint = load_checkpoint(backbone)
        export_bundle(load_artifact(head), checkpoint, folder / "bundle", stream=False)
    except SirenError as error:
        assert any(word in str(error) for word in words), (seed, words, error)  # noqa: PT017
        return "refused"
    tokens = compare_tokens(checkpoint, TEXTS)
    if tokens is not None:  # which names the files of the tokenizer
        assert any("token" in name for name in draft.changed()), (seed, words, tokens)
        return "refused by its tokens, as a verified export is"
    guard = load_guard(folder / "bundle")
    expected = reference_scores(head, backbone, folder / "reference", masked=name in MASKED)
    if expected is None or set(expected) == {None}:
        return "llm-siren cannot load or score it"
    ours = [score_or_none(guard, text) for text in TEXTS]
    assert ours == pytest.approx(expected, abs=BOUND), (seed, words)
    return "equal"


@pytest.mark.parametrize("name", BASES)
def test_a_mutated_checkpoint_is_scored_as_llm_siren_does_or_refused_by_name(
    name: str, tmp_path: Path, inputs: Inputs
) -> None:
    found = Counter(outcome(tmp_path / str(seed), inputs, name, seed) for seed in range(SEEDS))
    assert found["equal"] >= LEAST, found
    assert found["refused"] >= LEAST, found


def test_what_was_not_mutated_is_equal(tmp_path: Path, inputs: Inputs) -> None:
    assert outcome(tmp_path, inputs, "modernbert", None) == "equal"
