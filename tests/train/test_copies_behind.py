"""Copies that stand behind other text are pooled as a span of a long text is read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from backbones import BackboneSpec
from generators import make_generator, need_genai, open_pool
from labelled import make_rows, write_jsonl
from models import make_backbone
from onnx_backbones import export_onnx
from reference import load_reference
from siren_export.heads.mlp import Dense
from siren_export.heads.mlp_artifact import write_mlp_artifact
from siren_export.heads.selected import LayerSelection
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.backends.outputs import FloatArray
from siren_runtime.errors import InputError
from siren_train.data.copies import Copies, SafeTexts, safe_texts, with_copies
from siren_train.data.rows import Columns, Row, read_rows
from siren_train.data.sources import parse_source
from siren_train.store.extract import extract
from siren_train.store.generator import open_generator
from siren_train.store.store import FeatureStore, text_digest

COPIES = Copies(seed=0, behind={"first": 3, "second": 1})


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Two data sets of 40 rows, 24 of each for training."""
    return [
        row
        for name in ("first", "second")
        for row in read_rows(
            parse_source(str(write_jsonl(tmp_path / f"{name}.jsonl", make_rows(40, name=name)))),
            Columns(),
        )
    ]


def copied(rows: list[Row], copies: Copies = COPIES) -> list[tuple[Row, Row]]:
    """Each copy behind its row."""
    found, original = [], rows[0]
    for row in with_copies(rows, copies, safe_texts(rows, copies)):
        if row.is_copy:
            found.append((original, row))
        else:
            original = row
    return found


def test_a_row_stands_behind_safe_rows_which_do_not_count(rows: list[Row]) -> None:
    rows = [
        replace(row, text=" ".join(f"{row.dataset}-{word}" for word in row.text.split()))
        for row in rows
    ]
    safe = {(r.dataset, r.text) for r in rows if r.split == "train" and r.label == 0}
    words = {name: {w for d, text in safe if d == name for w in text.split()} for name, _ in safe}
    pairs = copied(rows)
    assert len(pairs) == (3 + 1) * 24
    of_own = counted = 0
    for original, copy in pairs:
        assert (copy.dataset, copy.split, copy.label) == (original.dataset, "train", original.label)
        lead, _, rest = copy.text.rpartition(original.text)
        assert not rest
        assert 40 <= len(lead.split()) <= 160
        found = {*lead.split()[1:]}  # the first may be cut
        assert any(found <= of for of in words.values())
        of_own += found <= words[original.dataset]
        if original.label:
            assert copy.skipped  # all of it is no harmful text
        more = copy.text[copy.skipped :].removesuffix(original.text).split()
        assert copy.skipped == 0 or len(more) <= 30
        counted += bool(more)
    assert 0.5 < of_own / len(pairs) < 1
    assert 0.2 < counted / len(pairs) < 0.8
    assert any(copy.skipped == 0 for _, copy in pairs)


def test_of_a_long_safe_row_it_is_a_span_and_of_a_harmful_one_all() -> None:
    words = " ".join(f"w{place}" for place in range(300))
    long = [Row("", "long", "train", words, label, "", None) for label in (0, 1)]
    short = [Row("", "long", "train", text, 0, "", None) for text in ("a b", "c d")]
    pairs = copied([*long, *short], Copies(seed=0, behind={"long": 8}))
    for original, copy in pairs:
        if original is long[1]:
            assert copy.text.endswith(words)
        elif original is long[0]:
            end = copy.text.split()
            assert int(end[-1][1:]) - int(end[-12][1:]) == 11
            assert not copy.text.endswith(words)


def test_text_without_white_space_is_cut() -> None:
    texts = ["字" * 900 + str(number) for number in range(4)]
    pairs = copied(
        [Row("", "chinese", "train", text, int(text[-1] == "3"), "", None) for text in texts],
        Copies(seed=0, behind={"chinese": 4}),
    )
    assert all(len(copy.text) <= 1_000 + 901 + 1 for _, copy in pairs)
    assert all(copy.skipped for original, copy in pairs if original.label)


def test_safe_rows_are_needed(rows: list[Row]) -> None:
    with pytest.raises(InputError, match="none has two different ones"):
        list(with_copies(rows, COPIES, SafeTexts()))


def test_a_part_of_a_text_is_another_than_all_of_it(rows: list[Row]) -> None:
    digests = {
        text_digest(Row("", "", "train", "a b c", 0, "", None, skipped=skipped))
        for skipped in (0, 2, 4)
    }
    assert len(digests) == 3


def pooled(rows: list[Row], store: FeatureStore) -> FloatArray:
    """What a store has of train rows, [rows, layers * channels]."""
    places = {digest: place for place, digest in enumerate(store.texts("train"))}
    array = store.array("train", "residual_mean")
    return np.array([array[places[text_digest(row)]].ravel() for row in rows])


def head_of_everything(folder: Path, store: FeatureStore) -> Path:
    """Write a head of llm-siren's whose features are all neurons of a store's backbone."""
    layers, channels = store.manifest.layers, store.manifest.channels
    write_mlp_artifact(
        folder,
        model_id=store.manifest.model_id,
        model_revision=None,
        pooling="residual_mean",
        layers=[LayerSelection(layer, np.arange(channels), 1.0) for layer in range(layers)],
        dense=[Dense(np.zeros((2, layers * channels)), np.zeros(2))],
        max_length=store.manifest.max_length,
        threshold=0.5,
    )
    return folder


def test_a_copy_has_the_mean_over_its_own_tokens_and_the_first(
    rows: list[Row], tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    """Of three texts that transformers reads whole: all, what is before, and the first token."""
    backbone = backbone_folder("qwen3")
    sources = [parse_source(str(tmp_path / f"{name}.jsonl")) for name in ("first", "second")]
    store = extract(
        sources, Columns(), load_checkpoint(str(backbone)), tmp_path / "store",
        model_id=str(backbone), copies=COPIES, threads=1,
    )  # fmt: skip
    reference = load_reference(head_of_everything(tmp_path / "everything", store))
    tokenizer = AutoTokenizer.from_pretrained(backbone)

    def sums(text: str) -> tuple[FloatArray, int]:
        reference.score_batch([text])
        count = len(tokenizer(text)["input_ids"])
        return reference.features.numpy()[0] * np.float32(count), count

    def is_clear(copy: Row) -> bool:
        """Whether white space before the part is no token, which llm-siren would strip."""
        before = len(tokenizer.tokenize(copy.text[: max(copy.skipped - 1, 0)]))
        return tokenizer.tokenize(copy.text)[before] not in ("Ġ", "Ċ")

    chosen = [copy for _, copy in copied(rows) if is_clear(copy)][::5]
    assert {bool(copy.skipped) for copy in chosen} == {True, False}
    for copy, found in zip(chosen, pooled(chosen, store), strict=True):
        total, tokens = sums(copy.text)
        if copy.skipped:
            before, skipped = sums(copy.text[: copy.skipped - 1])
            end = tokenizer(copy.text, return_offsets_mapping=True)["offset_mapping"][0][1]
            first, one = sums(copy.text[:end])
            assert one == 1
            total, tokens = total - before + first, tokens - skipped + 1
        np.testing.assert_allclose(found, total / np.float32(tokens), rtol=1e-3, atol=1e-4)


def test_whole_rows_are_pooled_as_without_copies(
    rows: list[Row], tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    checkpoint = load_checkpoint(str(backbone_folder("qwen3")))
    sources = [parse_source(str(tmp_path / f"{name}.jsonl")) for name in ("first", "second")]
    with_copies, without = (
        extract(
            sources, Columns(), checkpoint, tmp_path / f"store-{bool(copies)}",
            model_id="tiny", copies=copies, threads=1, chunk_rows=8,
        )
        for copies in (COPIES, None)
    )  # fmt: skip
    whole = [row for row in rows if row.split == "train"]
    found, expected = pooled(whole, with_copies), pooled(whole, without)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # of other batches


@pytest.mark.parametrize("kind", ["bert", "onnx"])
def test_what_reads_spans_by_themselves_pools_the_part_alone(
    kind: str, rows: list[Row], tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    """An encoder, and a decoder's ONNX file, which has no streaming graph."""
    folder = backbone_folder("bert" if kind == "bert" else "qwen3")
    backbone = export_onnx(folder, tmp_path / "onnx") if kind == "onnx" else folder
    sources = [parse_source(str(tmp_path / f"{name}.jsonl")) for name in ("first", "second")]
    store = extract(
        sources, Columns(), load_checkpoint(str(backbone)), tmp_path / "store",
        model_id=str(folder), copies=COPIES, threads=1, max_length=100,
    )  # fmt: skip
    reference = load_reference(head_of_everything(tmp_path / "everything", store))
    chosen = [copy for _, copy in copied(rows)][::5]
    assert {bool(copy.skipped) for copy in chosen} == {True, False}
    for copy, found in zip(chosen, pooled(chosen, store), strict=True):
        reference.score_batch([copy.text[copy.skipped :]])
        np.testing.assert_allclose(found, reference.features.numpy()[0], rtol=1e-3, atol=1e-4)


def test_a_generator_pools_the_same(rows: list[Row], tmp_path: Path) -> None:
    need_genai()
    backbone = make_backbone(tmp_path / "backbone", BackboneSpec("qwen2"))
    genai = make_generator(backbone, tmp_path / "genai", "fp32", "cpu")
    sources = [parse_source(str(tmp_path / f"{name}.jsonl")) for name in ("first", "second")]
    store = extract(
        sources, Columns(), load_checkpoint(str(backbone)), tmp_path / "store",
        model_id="tiny", copies=COPIES, threads=1, max_length=100,
    )  # fmt: skip
    copies = [copy for _, copy in copied(rows)][::9]
    plain = open_generator(str(genai), "plain")
    pool = open_pool(plain, tmp_path / "extractor")
    np.testing.assert_allclose(pool.pool(copies), pooled(copies, store), rtol=1e-3, atol=1e-3)
    chat = open_pool(open_generator(str(genai), "chat"), tmp_path / "extractor-chat")
    in_chat = chat.pool(copies[:1])[0]
    assert not np.allclose(in_chat, pooled(copies[:1], store)[0], rtol=1e-3, atol=1e-3)
