"""Of a text that is not read whole, what was read must be known, and the rest may be what it is."""

from pathlib import Path

import pytest
import tokenizers

from siren_runtime import Guard
from siren_runtime.text.chat_template import ChatTemplate
from siren_runtime.text.reading import Limits
from siren_runtime.text.tokenizer import Tokenizer
from siren_runtime.text.trajectory import trajectory_of
from siren_runtime.text.trajectory_reading import TrajectoryReader
from tiny_bundle import MAX_LENGTH, seal

PLAIN, UNKNOWN = "kind ", "strange "


@pytest.fixture
def words(own_bundle: Path) -> Path:
    """A bundle whose tokenizer makes a token a word and knows one."""
    vocabulary = {"[UNK]": 0, PLAIN.strip(): 1}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(own_bundle / "tokenizer.json"))
    seal(own_bundle)
    return own_bundle


def test_a_truncated_text_whose_beginning_is_unknown_is_not_called_safe(words: Path) -> None:
    guard = Guard.load(words, long_text="truncate", unreadable="review")
    text = UNKNOWN * MAX_LENGTH + PLAIN * 3 * MAX_LENGTH
    result = guard.score(text, threshold=1.0)
    assert (result.truncated, result.unknown) == (True, 1.0)
    assert (result.is_harmful, result.tier) == (None, "unreadable")
    half = UNKNOWN * (MAX_LENGTH // 2) + PLAIN * (MAX_LENGTH // 2) + UNKNOWN * MAX_LENGTH
    share = 7 / 11  # of its characters, the spaces left out
    assert guard.score(half, threshold=1.0).unknown == pytest.approx(share)
    windows = guard.score(text, threshold=1.0, long_text="windows")
    assert windows.unknown == pytest.approx(7 / 19)  # of the whole, all of which is read


def test_an_unknown_end_that_is_not_read_makes_no_beginning_unknown(words: Path) -> None:
    guard = Guard.load(words, long_text="truncate")
    result = guard.score(PLAIN * MAX_LENGTH + UNKNOWN * 3 * MAX_LENGTH, threshold=1.0)
    assert (result.truncated, result.unknown, result.is_harmful) == (True, 0.0, False)


@pytest.mark.parametrize(
    ("parts", "unknown"),
    [
        ((PLAIN, PLAIN, UNKNOWN), 1.0),
        ((UNKNOWN, PLAIN, PLAIN), 1.0),
        ((PLAIN, UNKNOWN, PLAIN), 0.0),
    ],
)
def test_of_a_trajectory_the_end_that_is_known_least_counts(
    words: Path, parts: tuple[str, ...], unknown: float
) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }} {% endfor %}", {}, "a test")
    tokenizer = Tokenizer(words / "tokenizer.json", MAX_LENGTH)
    reader = TrajectoryReader(template, tokenizer, MAX_LENGTH)
    messages = [{"role": "user", "content": part * MAX_LENGTH} for part in parts]
    reading = reader.read(trajectory_of(messages), Limits())
    assert (reading.truncated, reading.unknown) == (True, unknown)
    short = reader.read(trajectory_of([{"role": "user", "content": PLAIN + UNKNOWN}]), Limits())
    assert (short.omitted, short.unknown) == (None, pytest.approx(7 / 11))
