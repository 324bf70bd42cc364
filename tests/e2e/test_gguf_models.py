"""Trained models in GGUF files: read as transformers reads them, tensor by tensor, text by text."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from siren_export.sources.checkpoint import Checkpoint, load_checkpoint
from siren_export.sources.recipes import find_recipe
from siren_export.verify.gguf_reference import read_config, read_tokenizer
from siren_export.verify.texts import TEXTS
from siren_runtime.errors import CheckpointError
from siren_runtime.text.rules import clean

DATA = Path(__file__).parents[3] / "shared" / "data"
LINES = 300  # of each file of DATA; scripts/check-gguf reads more


@pytest.fixture(scope="module", autouse=True)
def parsed_once() -> Iterator[None]:
    """Let transformers parse a file once for all that it makes of it, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, functools.cache(getattr(gguf, name)))
        yield


def backbone_of(name: str) -> Path:
    recipe = find_recipe(name)
    assert recipe is not None
    try:
        return recipe.backbone()
    except CheckpointError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return backbone_of("smollm2")


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return backbone_of("gemma3-270m")


def ours(checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer.from_str(checkpoint.tokenizer_json.decode("utf-8"))


def lines_of_data() -> list[str]:
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data")
    texts = []
    for path in sorted(DATA.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for _, line in zip(range(LINES), file, strict=False)]
        texts += ["\n".join(r[k] for k in ("prompt", "response") if r[k]) for r in rows]
    return texts


def check_tensors(path: Path) -> None:
    weights = load_checkpoint(path).weights
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    theirs = {name.removeprefix("model."): v for name, v in model.state_dict().items()}
    assert theirs.keys() - weights.tensors.keys() == {"lm_head.weight"}  # tied
    for name in weights.tensors:
        np.testing.assert_array_equal(weights.read(name), theirs[name].numpy())


def check_config(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    assert read_config(checkpoint).ours == ()
    theirs = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for key, value in checkpoint.config.items():
        assert getattr(theirs, key) == value, key


def test_smollm2s_tensors_are_those_of_transformers(smollm2: Path) -> None:
    check_tensors(smollm2)


def test_smollm2s_config_is_that_of_transformers(smollm2: Path) -> None:
    check_config(smollm2)


def test_smollm2s_tokens_are_those_of_transformers_but_for_its_digits(smollm2: Path) -> None:
    checkpoint = load_checkpoint(smollm2)
    reading, tokenizer = read_tokenizer(checkpoint), ours(checkpoint)
    assert reading.ours == ("pre-tokenizer",)
    for text in map(clean, TEXTS):
        assert tokenizer.encode(text).ids == reading.made(text)["input_ids"], text
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    plain = [t for t in map(clean, TEXTS) if not any(c.isnumeric() for c in t)]
    assert len(plain) > 50
    for text in plain:
        assert tokenizer.encode(text).ids == theirs(text)["input_ids"], text
    # No token of the vocabulary has a digit and anything else: digits were split when it was made.
    digits = [token for token in tokenizer.get_vocab() if set(token) & set("0123456789")]
    assert sorted(digits) == list("0123456789")


def test_smollm2s_tokens_are_those_of_transformers_on_data(smollm2: Path) -> None:
    checkpoint = load_checkpoint(smollm2)
    theirs, tokenizer = read_tokenizer(checkpoint).made, ours(checkpoint)
    for text in map(clean, lines_of_data()):
        assert tokenizer.encode(text).ids == theirs(text)["input_ids"], text


@pytest.mark.gemma
def test_gemmas_tensors_are_those_of_transformers(gemma3: Path) -> None:
    check_tensors(gemma3)


@pytest.mark.gemma
def test_gemmas_config_is_that_of_transformers(gemma3: Path) -> None:
    check_config(gemma3)


@pytest.mark.gemma
def test_gemmas_tokens_are_those_of_transformers(gemma3: Path) -> None:
    checkpoint = load_checkpoint(gemma3)
    reading, tokenizer = read_tokenizer(checkpoint), ours(checkpoint)
    assert reading.ours == ()
    for text in [*map(clean, TEXTS), *TEXTS, *map(clean, lines_of_data())]:
        assert tokenizer.encode(text).ids == reading.made(text)["input_ids"], text
