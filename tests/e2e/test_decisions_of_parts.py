"""Decisions of a piece that is read in parts, since it about fills the stream."""

from collections.abc import Iterator

import pytest

from siren_runtime import AtTier, Guard, Hysteresis, Patience, Schedule, Stream, StreamResult
from streaming import LIMIT

WORDS = ("the", "cat", "likes", "peace", "bread", "water", "war", "to", "kill", "of", "harm")
TOTALS = range(LIMIT - 9, LIMIT + 2)  # tokens


@pytest.fixture(scope="module")
def streaming(guards) -> Guard:
    _, streaming = guards("qwen3")
    return streaming


@pytest.fixture(scope="module")
def text(streaming: Guard) -> str:
    """A text of which only the first tokens reach a score."""
    return next(text for text in texts() if peak(streaming, text) > 0.01)


def texts() -> Iterator[str]:
    for word in WORDS:
        for other in WORDS:
            yield f"{word} " * 10 + f"{other} " * 2 * LIMIT


def scores(streaming: Guard, text: str) -> list[float]:
    with streaming.stream() as stream:
        stream.feed_tokens(ids_of(streaming, text)[: LIMIT - 20])
        return [token.score for token in stream.scores]


def peak(streaming: Guard, text: str) -> float:
    """By how much one of the first tokens is above all later ones."""
    of_tokens = scores(streaming, text)
    return max(of_tokens[:10]) - max(of_tokens[30:])


def ids_of(streaming: Guard, text: str) -> list[int]:
    return streaming.scorers[0].tokenizer.encode(text).ids


def fed(stream: Stream, text: str, ids: list[int], kind: str) -> StreamResult:
    return stream.feed(text) if kind == "text" else stream.feed_tokens(ids)


@pytest.mark.parametrize("kind", ["text", "ids"])
@pytest.mark.parametrize("total", TOTALS)
def test_no_decision_of_one_long_feed_is_lost(
    streaming: Guard, text: str, total: int, kind: str
) -> None:
    encoded = streaming.scorers[0].tokenizer.encode(text)
    ids, whole = encoded.ids[:total], text[: encoded.offsets[total - 1][1]]
    of_tokens = scores(streaming, text)
    threshold = (max(of_tokens[:10]) + max(of_tokens[30:])) / 2
    rules = [
        Schedule(((0, threshold),)),
        Patience(1, 2, threshold),
        Hysteresis(threshold, threshold),
        AtTier("strict", threshold),
    ]
    with streaming.stream(rules=rules) as stream:
        result = fed(stream, whole, ids, kind)
    assert result.slid == (total > LIMIT)
    assert {decision.rule for decision in result.decisions} == {*map(str, rules)}
    first = next(token for token, score in enumerate(of_tokens) if score >= threshold)
    assert min(decision.token for decision in result.decisions) == first
    if not result.slid:
        assert result.tokens == result.computed - result.rolled_back == total
        with streaming.stream() as stream:
            stream.feed_tokens(ids[:60])
            assert result.score == pytest.approx(stream.feed_tokens(ids[60:]).score, abs=1e-5)
