"""The tokenizer gives the ids that transformers gives for the same tokenizer.json."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from siren_runtime import BundleError
from siren_runtime.text.tokenizer import Tokenizer
from texts import TEXTS


@pytest.fixture(scope="module")
def reference(bundle: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(bundle / "tokenizer.json"), truncation_side="right"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5), st.integers(2, 40))
def test_ids_are_those_of_transformers(
    bundle: Path, reference: PreTrainedTokenizerFast, texts: list[str], max_length: int
) -> None:
    ids = Tokenizer(bundle / "tokenizer.json", max_length).encode_batch(texts)
    assert ids == reference(texts, truncation=True, max_length=max_length)["input_ids"]


def test_ids_of_the_built_in_texts_are_those_of_transformers(
    bundle: Path, reference: PreTrainedTokenizerFast
) -> None:
    ids = Tokenizer(bundle / "tokenizer.json", 32).encode_batch(TEXTS)
    assert ids == reference(TEXTS, truncation=True, max_length=32)["input_ids"]


def test_padding_and_truncation_written_in_the_file_are_overruled(bundle: Path) -> None:
    ids = Tokenizer(bundle / "tokenizer.json", 10).encode_batch(["ab", "abcdefghijklmnop"])
    assert [len(sequence) for sequence in ids] == [3, 10]
    assert ids[0] == ids[1][:3]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"garbage", b'{"model":{}}', b"\xff\xfe", b"[" * 10_000]
)
def test_a_file_that_is_no_tokenizer_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer(path, 32)


def test_a_panic_of_the_tokenizers_library_is_refused_too(bundle: Path, tmp_path: Path) -> None:
    content = json.loads((bundle / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer(path, 32).encode_batch(["text"])


@pytest.mark.parametrize("max_length", [0, 1])
def test_a_limit_that_leaves_no_token_for_the_text_is_refused(
    max_length: int, bundle: Path
) -> None:
    with pytest.raises(BundleError, match=f"max_length of {max_length}"):
        Tokenizer(bundle / "tokenizer.json", max_length)
