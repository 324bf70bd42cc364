"""A text that does not fit is read in windows, and the result says what was read."""

import functools
import json
import tempfile
import threading
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from clock import Clock
from siren_runtime import BackendError, Guard, InputError, ScoreResult, SharedGuard
from siren_runtime.commands import score
from siren_runtime.text.passage import make_passage
from siren_runtime.text.reading import AS_LLM_SIREN, Limits, read_passages
from siren_runtime.text.rules import clean
from siren_runtime.text.tokenizer import Tokenizer
from texts import TEXTS
from tiny_bundle import HARM, MAX_LENGTH, make_alarm, make_tokenizer, seal
from tiny_tokenizers import TOKENIZERS

ROOM = MAX_LENGTH - 1  # the tiny tokenizer puts a start token in front and takes a byte a token


@pytest.fixture(scope="module")
def alarm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose score is that of the share of z among the bytes it reads."""
    return make_alarm(tmp_path_factory.mktemp("alarm") / "bundle", 40)


def share(text: str) -> float:
    """What the alarm gives a text that fits."""
    return float(1 / (1 + np.exp(-40 * text.count(HARM) / (len(text) + 1))))


def test_a_text_that_fits_is_read_as_a_whole(alarm: Path) -> None:
    result = Guard.load(alarm).score("a" * ROOM)
    assert (result.tokens, result.truncated, result.span) == (MAX_LENGTH, False, None)


def test_harm_far_behind_the_limit_is_found_and_its_place_named(alarm: Path) -> None:
    guard = Guard.load(alarm)
    text = "a" * 1000 + HARM * 8 + "b" * 400
    result = guard.score(text)
    assert result.score == pytest.approx(share("a" * (ROOM - 8) + HARM * 8), abs=1e-5)
    assert (result.tokens, result.truncated) == (len(text) + 1, False)
    start, end = result.span
    assert end - start == ROOM
    assert start <= 1000
    assert end >= 1008
    cut = guard.score(text, long_text="truncate")
    assert cut.score == pytest.approx(0.5)
    assert (cut.tokens, cut.truncated, cut.span) == (len(text) + 1, True, (0, ROOM))
    with pytest.raises(InputError, match=rf"1408 tokens, the guard reads {ROOM} at once"):
        guard.score(text, long_text="refuse")


def test_the_way_of_a_load_is_that_of_its_calls(alarm: Path) -> None:
    guard = Guard.load(alarm, long_text="truncate")
    assert guard.score_batch(["a" * 99])[0].truncated
    assert not guard.score_batch(["a" * 99], long_text="windows")[0].truncated
    with pytest.raises(InputError, match="long_text"):
        Guard.load(alarm, long_text="middle")  # type: ignore[arg-type]


def test_a_response_that_does_not_fit_is_read_behind_its_prompts_end(alarm: Path) -> None:
    guard = Guard.load(alarm)
    prompt, response = "p" * 20 + HARM * 4, "r" * 200
    result = guard.score(prompt=prompt, response=response)
    # The prompt by itself holds most harm; behind 7 of its tokens the response holds 4 of 31.
    assert result.score == pytest.approx(share(prompt), abs=1e-5)
    assert result.span == (0, len(prompt) + 1) or result.span == (0, len(prompt))
    late = guard.score(prompt="p" * 24, response="r" * 200 + HARM * 9)
    assert late.span[1] == 24 + 1 + 209
    context = guard.score(prompt=HARM * 7, response="r" * 200)
    assert context.score == pytest.approx(share(HARM * 7), abs=0.02)


@settings(deadline=None)
@given(st.text(alphabet="ab z\n\t<|im_end|>é", max_size=300))
def test_every_token_is_in_a_window_and_windows_are_what_the_tokenizer_makes(text: str) -> None:
    tokenizer = _tokenizer()
    passage = make_passage(text, max_bytes=1 << 20)
    (reading,) = read_passages(tokenizer, [passage], Limits())
    (whole,) = tokenizer.encode_plain([passage.cleaned])
    assert reading.tokens == len(whole) + 1
    seen = np.zeros(len(whole), bool)
    for window in reading.windows:
        assert len(window.ids) <= MAX_LENGTH
        ids = window.ids[1:]
        starts = [i for i in range(len(whole)) if whole[i : i + len(ids)] == ids]
        assert starts
        for start in starts:
            seen[start : start + len(ids)] = True
        if window.span is not None:
            first, last = passage.span_in_given(window.span)
            assert 0 <= first < last <= len(text)
            part = passage.cleaned[slice(*window.span)]
            assert clean(part).strip() in clean(text[first:last]) or "<" in part
    assert seen.all()


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
def test_characters_of_the_cleaned_text_stand_where_they_are_said_to(text: str) -> None:
    passage = make_passage(text, max_bytes=1 << 20)
    every = max(len(passage.cleaned) // 20, 1)
    for place, character in list(enumerate(passage.cleaned))[::every]:
        first, _ = passage.span_in_given((place, place + 1))
        if not character.isspace():
            assert passage.given[first] == character


def test_special_tokens_stand_around_ids_as_the_library_puts_them(bundle: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    library.no_truncation()
    library.no_padding()
    tokenizer = Tokenizer(bundle / "tokenizer.json", 1 << 20)
    assert tokenizer.encode_batch(TEXTS) == [library.encode(text).ids for text in TEXTS]


def test_rows_of_the_command_are_read_as_prompt_and_response(alarm: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 40, "response": "r" * 200 + HARM * 9}, {"text": "a" * 99}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(score.app, [str(alarm), "--input", str(path)])
    first, second = map(json.loads, result.stdout.splitlines())
    expected = Guard.load(alarm).score(prompt="p" * 40, response="r" * 200 + HARM * 9)
    assert (first["score"], first["span"]) == (expected.score, list(expected.span))
    assert expected.span[1] - expected.span[0] < ROOM
    assert not second["truncated"]
    result = CliRunner().invoke(
        score.app, [str(alarm), "--input", str(path), "--long-text", "truncate"]
    )
    assert json.loads(result.stdout.splitlines()[1])["truncated"]
    result = CliRunner().invoke(score.app, [str(alarm), "a" * 99, "--max-tokens", "50"])
    assert result.exit_code == 1
    assert "max_tokens_per_text" in result.stderr
    result = CliRunner().invoke(score.app, [str(alarm), "a" * 99, "--format", "table"])
    assert "0-31" in result.stdout


# --- bounds


@pytest.mark.parametrize("character", ["<", "é", "🙂"])
def test_ten_megabytes_are_refused_beside_eight_callers_before_a_character_is_tokenized(
    character: str, alarm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, text = Guard.load(alarm, threads=1), character * 10_000_000
    expected, read, stop = guard.score("a" * 20).score, Counter[int](), threading.Event()
    for name in ("encode_plain", "encode_texts", "encode"):
        monkeypatch.setattr(Tokenizer, name, _noting(getattr(Tokenizer, name), read))

    def call() -> set[float]:
        found = set()
        while not (stop.is_set() and found):
            found.add(guard.score("a" * 20).score)
        return found

    with ThreadPoolExecutor(8) as pool, SharedGuard(guard) as shared:
        calls = [pool.submit(call) for _ in range(8)]
        tracemalloc.start()
        try:
            for score_it in (guard.score, shared.score, guard.stream().feed, guard.stream):
                with pytest.raises(InputError, match=r"10,000,000 bytes.*max_bytes_per_text"):
                    score_it(text)
            (result, other) = guard.score_each([text, "a" * 20])
            assert isinstance(result, InputError)
            assert isinstance(other, ScoreResult)
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()
            stop.set()
        assert {score for call in calls for score in call.result()} == {expected}
    assert set(read) == {20}


def _noting(method: Any, read: Counter[int]) -> Any:
    """A method of a tokenizer that notes how long the texts are that it is given."""

    def noting(tokenizer: Tokenizer, texts: Any, *args: Any, **options: Any) -> Any:
        read.update(map(len, [texts] if isinstance(texts, str) else texts))
        return method(tokenizer, texts, *args, **options)

    return noting


def test_a_text_too_large_is_refused(alarm: Path) -> None:
    guard = Guard.load(alarm)
    with pytest.raises(InputError, match=r"more than the 16,384 tokens.*max_tokens_per_text"):
        guard.score("a" * 100_000)
    with pytest.raises(InputError, match=r"more than the 50 tokens.*: 60; split"):
        Guard.load(alarm, max_tokens_per_text=50).score("a" * 60)
    with pytest.raises(InputError, match="more than the 3 tokens"):
        Guard.load(alarm, max_tokens_per_text=3).score("a" * 5)
    assert Guard.load(alarm, max_bytes_per_text=4).score("é" * 2).tokens == 5
    with pytest.raises(InputError, match="5 bytes"):
        Guard.load(alarm, max_bytes_per_text=4).score("aéé")


_PIECES = st.sampled_from(
    ["the ", "bread", " ", "\n", ".", "q", "x" * 40, "x" * 90, "é", "😀", "中文", "1234", "<|im_"]
)


@pytest.mark.parametrize("family", ["bert", "llama", "mistral"])
@settings(deadline=None)
@given(st.lists(_PIECES, max_size=60), st.integers(1, 200))
@example(["x" * 90] * 4, 10)  # a word that WordPiece takes for one token, and its beginning for 80
def test_a_text_is_refused_for_its_tokens_only_where_the_whole_has_more(
    family: str, pieces: list[str], limit: int
) -> None:
    tokenizer = _tokenizer(family)
    passage = make_passage("".join(pieces), max_bytes=1 << 20)
    (reading,) = read_passages(tokenizer, [passage], Limits(max_tokens=limit))
    (whole,) = tokenizer.encode_plain([passage.cleaned])
    if len(whole) > limit:
        assert isinstance(reading, InputError)
    else:
        assert reading.tokens == len(tokenizer.with_special(whole))


def test_of_a_text_with_too_many_tokens_no_more_is_tokenized_than_tells(
    alarm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, clock = Guard.load(alarm, max_tokens_per_text=50), Clock(monkeypatch)
    with pytest.raises(InputError, match="more than the 50 tokens"):
        guard.score("a" * 1_000_000)
    assert clock.characters == 4 * 50


def test_one_text_too_large_leaves_its_neighbours_their_scores(alarm: Path) -> None:
    results = Guard.load(alarm).score_each(["a", "b" * (2 << 20), "c"])
    assert [type(result).__name__ for result in results] == [
        "ScoreResult",
        "InputError",
        "ScoreResult",
    ]


def test_a_prompt_too_large_is_refused_by_a_stream_too(alarm: Path) -> None:
    guard = Guard.load(alarm, max_tokens_per_text=100, max_bytes_per_text=1000)
    with pytest.raises(InputError, match="1,000 are read"):
        guard.stream("a" * 1001)
    with guard.stream("a" * 100) as stream:
        assert stream.feed("b").tokens > 100
    with guard.stream("a" * 101) as stream:
        for _ in range(2):
            with pytest.raises(InputError, match="the prompt has more than the 100 tokens"):
                stream.feed("b")
            stream.reset()


def test_a_piece_too_large_is_refused_and_the_stream_goes_on_anew(alarm: Path) -> None:
    stream = Guard.load(alarm, max_tokens_per_text=50, max_bytes_per_text=90).stream()
    for piece, message in (("a" * 60, "more than the 50 tokens"), ("a" * 91, "91 bytes")):
        stream.reset()
        with pytest.raises(InputError, match=message):
            stream.feed(piece)
        with pytest.raises(BackendError, match="has no verdict"):
            stream.feed("a")
    stream.reset()
    for _ in range(3):
        stream.feed("a" * 40)
    assert stream.feed("a").slid


@pytest.mark.parametrize("name", ["max_tokens_per_text", "max_bytes_per_text"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "9"])
def test_a_bound_is_a_whole_number(alarm: Path, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        Guard.load(alarm, **{name: value})


# --- what the vocabulary lacks


@pytest.fixture
def words(own_bundle: Path) -> Path:
    """A bundle whose tokenizer knows few words."""
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "kind", "words", "only"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(own_bundle / "tokenizer.json"))
    seal(own_bundle)
    return own_bundle


def test_a_text_that_is_mostly_unknown_is_not_called_safe(words: Path) -> None:
    guard = Guard.load(words)
    threshold = guard.score("kind", threshold=0.0).score + 1e-6
    assert guard.score("kind strange words", threshold=1.0).unknown == pytest.approx(7 / 16)
    with pytest.raises(InputError, match=r"73% of the text is unknown.*unreadable='review'"):
        guard.score("kind strange ones", threshold=1.0)
    assert guard.score("kind strange ones", threshold=0.0).is_harmful
    review = Guard.load(words, unreadable="review").score("kind strange ones", threshold=1.0)
    assert (review.is_harmful, review.tier) == (None, "unreadable")
    assert json.loads(json.dumps(review.to_dict()))["is_harmful"] is None
    assert Guard.load(words, max_unknown=1.0).score("strange", threshold=1.0).is_harmful is False
    assert threshold > 0


def test_few_known_words_make_no_text_known(words: Path) -> None:
    guard = Guard.load(words)
    with pytest.raises(InputError, match="of the text is unknown"):
        guard.score("kind words only " + "strangenesses" * 20, threshold=1.0)


def test_a_stream_that_is_mostly_unknown_is_not_called_safe(words: Path) -> None:
    stream = Guard.load(words, unreadable="review").stream(threshold=1.0)
    assert stream.feed("kind words ").is_harmful is False
    result = stream.feed("strange ones are here ")
    assert (result.is_harmful, result.tier) == (None, "unreadable")
    assert result.unknown > 0.5


# --- what invisible characters cut

WORDS = ["these", "are", "words", "of", "some", "text"]
UNSEEN = "\u00ad\u034f\u180e\u200b\u200d\u202e\u2060\u3164\ufe0f\ufeff\x01\U000e0041\U000e0100"


@pytest.mark.parametrize("unseen", UNSEEN, ids=lambda c: f"U+{ord(c):04X}")
def test_a_text_that_invisible_characters_cut_is_not_called_safe(alarm: Path, unseen: str) -> None:
    text = " ".join(unseen.join(word) for word in WORDS)
    guard = Guard.load(alarm)
    plain = guard.score(f"{unseen} these are words {unseen}", threshold=0.9)
    assert (plain.unknown, plain.is_harmful) == (0.0, False)
    with pytest.raises(InputError, match="cut by invisible characters"):
        guard.score(text, threshold=0.9)
    assert guard.score(text, threshold=0.0).is_harmful
    review = Guard.load(alarm, unreadable="review").score(text, threshold=0.9)
    assert (review.is_harmful, review.tier) == (None, "unreadable")
    as_llm_siren = Guard.load(alarm, **AS_LLM_SIREN).score(text, threshold=0.9)
    assert (as_llm_siren.is_harmful, as_llm_siren.score) == (False, review.score)
    result = Guard.load(alarm).stream(threshold=0.9).feed(text)
    assert (result.is_harmful, result.tier) == (None, "unreadable")


def test_few_cut_words_are_a_share_of_the_text(alarm: Path) -> None:
    found = Guard.load(alarm).score("a hy\u00adphen among others", threshold=0.9)
    assert found.unknown == pytest.approx(7 / 19)
    assert found.is_harmful is False


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian
        "\u0915\u094d\u200d\u092f\u093e",  # Devanagari
        "\u0e44\u0e17\u0e22\u200b\u0e20\u0e32\u0e29\u0e32",  # Thai
        "\u845b\U000e0100\u57ce",  # a variant of a Chinese character
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f 1\ufe0f\u20e3",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "\ufeffa text\u200b, \u2067\u05e9\u05dc\u05d5\u05dd\u2069 and\u200e more",
    ],
)
def test_invisible_characters_where_they_belong_cut_nothing(alarm: Path, text: str) -> None:
    assert Guard.load(alarm).score(text).unknown == 0.0


def test_what_a_tokenizer_leaves_out_cuts_nothing(own_bundle: Path) -> None:
    vocabulary = {"[UNK]": 0, "kind": 1, "ab": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Replace("\u200b", "")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(own_bundle / "tokenizer.json"))
    seal(own_bundle)
    guard = Guard.load(own_bundle, unreadable="review")
    assert guard.score("kind ki\u200bnd").unknown < 0.5
    assert guard.score("kind ki\u2060nd").unknown >= 0.5


@functools.cache
def _tokenizer(family: str | None = None) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        if family is None:
            make_tokenizer().save(str(path))
        else:
            TOKENIZERS[family](Path(folder))
        return Tokenizer(path, MAX_LENGTH)
