"""A stream of an ensemble scores as the ensemble scores the text so far."""

import numpy as np
import pytest

from guards import load_guard
from siren_runtime import Guard, InputError, Patience, Schedule
from siren_runtime.text.reading import LLM_SIREN_LIMITS
from streaming import BOUND, LIMIT, cut
from texts import CORPUS

TEXT = " ".join(CORPUS[:2])[:160]


@pytest.fixture(scope="module")
def ensemble(export):
    bundles = [export(name, max_length=LIMIT).bundle for name in ("qwen3", "llama-llama3-rope")]
    return load_guard(bundles, backend="cpu", threads=1, streaming=True)


def test_every_feed_gives_the_mean_of_the_members_scores_so_far(ensemble):
    fed = ""
    with ensemble.stream(prompt="How do I bake bread?") as stream:
        for piece in cut(TEXT, np.random.default_rng(0)):
            fed += piece
            result = stream.feed(piece)
            expected = ensemble.score(prompt="How do I bake bread?", response=fed)
            assert result.score == pytest.approx(expected.score, abs=BOUND)
            assert result.is_harmful == expected.is_harmful


def test_streams_in_one_batch_score_as_those_alone(ensemble):
    texts = [TEXT[i : i + 60] for i in range(0, 120, 20)]
    with ensemble.streams() as streams:
        opened = [streams.open() for _ in texts]
        for part in range(3):
            pieces = [text[20 * part : 20 * (part + 1)] for text in texts]
            results = streams.feed(zip(opened, pieces, strict=True))
    expected = [result.score for result in ensemble.score_batch(texts)]
    np.testing.assert_allclose([result.score for result in results], expected, atol=BOUND)


def test_rules_decide_over_the_mean_at_the_first_members_tokens(ensemble):
    rule, never = Schedule(((0, 0.0),)), Patience(1, 1, 1.0)
    with ensemble.stream(rules=(rule, never)) as stream:
        result = stream.feed(TEXT[:40])
        scores = stream.scores
    assert [decision.rule for decision in result.decisions] == [str(rule)]
    assert result.decisions[0].token == 0
    assert result.decisions[0].score == pytest.approx(scores[0].score)
    assert scores[-1].score == pytest.approx(result.score)
    assert "".join(score.space + score.text for score in scores).strip() == TEXT[:40].strip()


@pytest.mark.parametrize("pieces", [1, 7])
def test_members_that_slide_keep_the_mean_of_their_own_streams(ensemble, pieces):
    text = " ".join(CORPUS) * 2
    size = -(-len(text) // pieces)
    alone = []
    for scorer in ensemble.scorers:
        guard = Guard([scorer], limits=LLM_SIREN_LIMITS)
        with guard.stream(max_tokens=64) as stream:
            for start in range(0, len(text), size):
                result = stream.feed(text[start : start + size])
            assert result.slid
            alone.append(stream.scores[-1].score)
    with ensemble.stream(max_tokens=64, rules=(Schedule(((0, 0.0),)),)) as stream:
        for start in range(0, len(text), size):
            result = stream.feed(text[start : start + size])
        assert result.slid
        assert stream.scores[-1].score == pytest.approx(np.mean(alone), abs=BOUND)
        assert stream.memory_bytes > 0
        assert result.decisions[0].token == 0


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_a_decoder_and_an_encoder_stream_together(export):
    bundles = [export(name, max_length=LIMIT).bundle for name in ("qwen3", "bert")]
    mixed = load_guard(bundles, backend="cpu", threads=1)
    with mixed.stream() as stream:
        for piece in ("how do ", "I bake ", "bread?"):
            result = stream.feed(piece)
    assert result.score == pytest.approx(mixed.score("how do I bake bread?").score, abs=BOUND)
    with pytest.raises(InputError, match="re-encodes"):
        mixed.stream(aggregation="window")
