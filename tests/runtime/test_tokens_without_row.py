"""A token that the embedding has no row for is refused by name, and costs its own text alone."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers

from siren_runtime import BackendError, Guard, InputError, ScoreResult
from siren_runtime.text.reading import Limits
from siren_runtime.text.tokenizer import Tokenizer
from siren_runtime.text.trajectory import trajectory_of
from siren_runtime.text.trajectory_reading import TrajectoryReader
from tiny_bundle import make_bundle, seal

BEYOND = "<beyond>"
NAMED = rf"token 258, '{BEYOND}', for which the backbone's embedding, of 258 rows, has none"


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    """A bundle whose tokenizer has one token more than its embedding has rows."""
    folder = make_bundle(tmp_path / "padded")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([BEYOND])
    tokenizer.save(str(folder / "tokenizer.json"))
    seal(folder, vocab_size=rows)
    return folder


def test_the_other_texts_of_a_batch_keep_their_results(padded: Path) -> None:
    guard = Guard.load(padded, backend="cpu")
    good, bad, other = guard.score_each(["good", f"bad {BEYOND} text", "other"])
    assert isinstance(good, ScoreResult)
    assert isinstance(other, ScoreResult)
    assert [good, other] == guard.score_batch(["good", "other"])
    with pytest.raises(InputError, match=NAMED):
        raise bad  # type: ignore[misc]
    with pytest.raises(InputError, match=rf"texts\[1\].*{NAMED}"):
        guard.score_batch(["good", BEYOND])
    with pytest.raises(InputError, match=NAMED):
        guard.score(prompt="good", response=BEYOND)


def test_one_that_is_not_read_is_no_fault(padded: Path) -> None:
    guard = Guard.load(padded, backend="cpu", long_text="truncate")
    long = f"{'a' * 40}{BEYOND}"
    assert guard.score(long).truncated
    with pytest.raises(InputError, match=NAMED):
        guard.score(long, long_text="windows")


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_a_stream_refuses_it_as_text_and_as_a_token(padded: Path) -> None:
    guard = Guard.load(padded, backend="cpu")
    with guard.stream() as stream:
        stream.feed("good")
        with pytest.raises(InputError, match=NAMED):
            stream.feed(BEYOND)
        stream.reset()
        stream.feed_tokens([0, 257])
        with pytest.raises(InputError, match=NAMED):
            stream.feed_tokens([258])
        stream.reset()
        with pytest.raises(InputError, match="token 259, for which"):
            stream.feed_tokens([259])


def test_a_trajectory_refuses_it(padded: Path) -> None:
    class Last:
        """A template that renders the last message alone."""

        def render(self, messages: Any, **_: Any) -> str:
            return str(messages[-1]["content"])

    tokenizer = Tokenizer(padded / "tokenizer.json", 32, vocab_size=258)
    reader = TrajectoryReader(Last(), tokenizer, 32)  # type: ignore[arg-type]
    trajectories = [trajectory_of(messages=[{"role": "user", "content": t}]) for t in ("a", BEYOND)]
    good, bad = reader.read_each(trajectories, Limits())
    assert not isinstance(good, InputError)
    with pytest.raises(InputError, match=NAMED):
        raise bad  # type: ignore[misc]


def test_a_bundle_of_before_says_nothing_of_its_rows(padded: Path) -> None:
    seal(padded)
    guard = Guard.load(padded, backend="cpu")
    assert guard.score("good").score > 0
    with pytest.raises(BackendError):
        guard.score(BEYOND)
