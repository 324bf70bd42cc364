"""A piece that is more than a stream holds has the worst verdict of its parts."""

import warnings
from pathlib import Path

import pytest

from siren_runtime import BackendError, Guard, InputError, Schedule
from siren_runtime.backends.verdicts import HeadScore
from siren_runtime.streaming.parts import halved, result_of_parts
from siren_runtime.streaming.result import StreamResult
from tiny_bundle import HARM, MAX_LENGTH, make_alarm

THRESHOLD = 0.9  # of the share of z among the tokens; one of half of them is above it


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_alarm(tmp_path_factory.mktemp("alarm") / "bundle", 8)


@pytest.fixture(scope="module")
def alarm(bundle: Path) -> Guard:
    """A guard whose score is that of the share of z among the bytes it holds."""
    guard = Guard.load(bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guard.stream().close()  # which warns once that it reads anew
    return guard


@pytest.mark.parametrize("place", [0, 1, 20, 31, 60, 150, 188])
@pytest.mark.parametrize("prompt", [None, "a" * 11, "a" * 100])
def test_harm_anywhere_in_a_long_piece_counts(alarm: Guard, place: int, prompt: str | None) -> None:
    text = "a" * place + HARM * 12 + "a" * (188 - place)
    assert alarm.score(text, threshold=THRESHOLD).is_harmful
    with alarm.stream(prompt, threshold=THRESHOLD) as stream:
        result = stream.feed(text)
        assert result.is_harmful
        assert result.score >= THRESHOLD
        assert stream.result == result
        given = text if prompt is None else f"{prompt}\n{text}"
        assert result.span is not None
        assert HARM in given[slice(*result.span)]
        assert result.slid
        assert result.tokens >= len(text)
        assert not stream.feed("a" * 3).is_harmful or place > 150  # what it holds now


def test_the_ids_of_tokens_count_alike(alarm: Guard) -> None:
    (ids,) = alarm.scorers[0].tokenizer.encode_plain([HARM * 12 + "a" * 188])
    with alarm.stream(threshold=THRESHOLD) as stream:
        assert stream.feed_tokens(ids).is_harmful


def test_a_piece_that_fits_is_read_at_once(alarm: Guard) -> None:
    """However harmful its front is by itself."""
    text = HARM * 6 + "a" * 17
    with alarm.stream(threshold=0.95) as stream:
        result = stream.feed(text)
    assert result.score == alarm.score(text).score
    assert (result.is_harmful, result.slid, result.computed) == (False, False, len(text) + 1)


@pytest.mark.parametrize("tokens", range(23, MAX_LENGTH + 3))
def test_a_rule_that_was_in_force_in_any_part_of_a_piece_is_told(alarm: Guard, tokens: int) -> None:
    """Whether or not text slid out between the parts; the verdict on what fits is the text's."""
    text = HARM * 6 + "a" * (tokens - 7)  # and the start token
    with alarm.stream(rules=[Schedule(((0, THRESHOLD),))], threshold=THRESHOLD) as stream:
        result = stream.feed(text)
    assert (result.tokens, result.slid) == (tokens, tokens > MAX_LENGTH)
    assert bool(result.decisions) == (tokens > MAX_LENGTH - 7)  # fewer are read at once
    if not result.slid:
        assert result.score == pytest.approx(alarm.score(text).score)
        assert not result.is_harmful
        assert result.computed >= tokens


def test_what_slides_out_was_judged_before(alarm: Guard) -> None:
    """A short piece that pushes older text out has the verdict on what is held."""
    with alarm.stream(threshold=THRESHOLD) as stream:
        assert stream.feed(HARM * 6).is_harmful
        assert not stream.feed("a" * 20).is_harmful
        result = stream.feed("a" * 12)
        assert (result.is_harmful, result.slid) == (False, True)


def test_a_stream_keeps_no_scores_of_what_slid_out(alarm: Guard) -> None:
    """Which only those of an ensemble's further members are looked up by."""
    with alarm.stream() as stream:
        stream.feed(HARM * 6)
        for _ in range(20):
            stream.feed("a" * 12)
        (track,) = stream.session.tracks
        assert track.scores_at([1]) == track.state.scores[:1] < [0.6]


def test_many_streams_that_are_fed_together_have_their_own_parts(alarm: Guard) -> None:
    texts = ["a" * 9, HARM * 12 + "a" * 188, "a" * 70, HARM * 9]
    with alarm.streams() as streams:
        opened = [streams.open(threshold=THRESHOLD) for _ in texts]
        results = streams.feed(zip(opened, texts, strict=True))
        assert [result.is_harmful for result in results] == [False, True, False, True]
        results = streams.feed([(opened[1], "a" * 400), (opened[0], "\ud800")])
        assert not results[0].is_harmful
        assert isinstance(results[1], InputError)


def test_an_ensemble_reads_the_parts_that_each_member_can(alarm: Guard, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_alarm(tmp_path / name, 8)
    (tmp_path / "ensemble.json").write_text('{"format_version": 1, "members": ["one", "two"]}')
    guard = Guard.load(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = guard.stream(threshold=THRESHOLD)
    with stream:
        assert stream.feed(HARM * 12 + "a" * 188).is_harmful


@pytest.mark.parametrize("most", [1, 3, 10])
def test_parts_are_the_piece(most: int) -> None:
    piece = "ab cde\U0001f600 fghijkl"
    parts = halved(piece, most, lambda part: len(part.encode()))
    assert "".join(parts) == piece
    assert all(len(part.encode()) <= most or len(part) == 1 for part in parts)


def result(is_harmful: bool | None, risk: float, tokens: int, other: bool = False) -> StreamResult:
    own = HeadScore(risk, is_harmful, 0.5, risk=risk)
    further = HeadScore(1.0, other, 0.5, risk=float(other), categories={"a": 1.0}, flagged=("a",))
    quiet = HeadScore(0.0, other, 0.5, categories={"a": 0.0})
    heads = {"harm": own, "kinds": further if other else quiet}
    return StreamResult(risk, is_harmful, 0.5, tokens, 2, 1, True, risk=risk, heads=heads)


def test_the_worst_verdict_of_each_head_counts() -> None:
    harmful, unread, safe = (
        result(True, 0.6, 9),
        result(None, 0.2, 20),
        result(False, 0.4, 30, True),
    )
    for order in ([harmful, unread, safe], [safe, unread, harmful]):
        found = result_of_parts(order, slid=True)
        assert (found.is_harmful, found.risk) == (True, 0.6)
        assert (found.tokens, found.computed, found.rolled_back) == (order[-1].tokens, 6, 3)
        assert [head.is_harmful for head in found.heads.values()] == [True, True]
        assert (found.categories, found.flagged) == ({"a": 1.0}, ("a",))
    assert result_of_parts([unread, safe], slid=True).is_harmful is None
    assert result_of_parts([harmful, unread, safe], slid=False).heads == safe.heads


def test_the_end_of_a_text_keeps_the_verdict_on_what_slid_out_before_it(alarm: Guard) -> None:
    with alarm.stream(threshold=THRESHOLD) as stream:
        stream.feed(HARM * 12 + "a" * 188)
        ended = stream.feed("", last=True)
        assert (ended.is_harmful, ended.computed) == (True, 0)
        assert stream.feed("").is_harmful
        assert not stream.feed("a").is_harmful
        assert not stream.feed("", last=True).is_harmful
        stream.reset()
        stream.feed("a" * 3)
        assert not stream.feed("", last=True).is_harmful


def test_the_span_says_of_which_part_the_verdict_is(alarm: Guard) -> None:
    with alarm.stream(threshold=THRESHOLD) as stream:
        result = stream.feed(HARM * 5 + "a" * 195)
    assert result.truncated
    assert result.span is not None
    assert result.span[0] == 0
    assert result.span[1] < MAX_LENGTH


def test_harm_across_two_parts_is_read_whole(alarm: Guard) -> None:
    for place in range(60):  # six z among all that it can hold are above 0.8, and five are not
        text = "a" * place + HARM * 6 + "a" * (66 - place)
        with alarm.stream(threshold=0.8) as stream:
            assert stream.feed(text).is_harmful


def test_an_interrupt_between_parts_leaves_no_verdict(
    alarm: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with alarm.streams() as streams:
        one, other = streams.open(), streams.open()
        with monkeypatch.context() as patched:
            patched.setattr(other.session, "conclude", interrupted)
            with pytest.raises(KeyboardInterrupt):
                streams.feed([(one, "a" * 200), (other, "a" * 200)])
        for stream in (one, other):
            with pytest.raises(BackendError, match="interrupted"):
                stream.feed("a")
            stream.reset()
            assert stream.feed("a").is_harmful is not None


def interrupted(**_: object) -> None:
    raise KeyboardInterrupt


def test_the_streams_that_end_are_among_those_that_are_fed(alarm: Guard) -> None:
    with alarm.streams() as streams:
        one, other = streams.open(), streams.open()
        pieces = [(one, "a"), (other, "a")]
        assert len(streams.feed(pieces, last=(stream for stream in (other, one)))) == 2
        with pytest.raises(InputError, match="last names a stream"):
            streams.feed([(one, "a")], last=[other])
        with pytest.raises(InputError, match="last must be"):
            streams.feed([(one, "a")], last=one)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_text_that_makes_hardly_any_token_is_bounded(bundle: Path) -> None:
    """It never slides out, and would be tokenized anew at each feed."""
    guard = Guard.load(bundle, max_bytes_per_text=1000)
    with guard.stream() as stream:
        stream.feed("a")
        for _ in range(3):
            stream.feed(" " * 999)
        with pytest.raises(InputError, match="few tokens"):
            stream.feed(" " * 999)
