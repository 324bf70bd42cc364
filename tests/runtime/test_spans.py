"""Spans of a text are scored beside the whole, so that plain text around harm does not hide it."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from clock import Clock
from siren_runtime import Guard, InputError
from siren_runtime.commands import score
from siren_runtime.text.reading import Limits
from siren_runtime.text.spans import Cut, cuts, sentences
from siren_runtime.text.tokenizer import Encoded
from tiny_bundle import HARM, MAX_LENGTH, make_alarm


@pytest.fixture(scope="module")
def alarm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose score is that of the share of z among the bytes it reads."""
    return make_alarm(tmp_path_factory.mktemp("alarm") / "bundle", 8)


def share(text: str) -> float:
    """What the alarm gives a text that it reads by itself."""
    return float(1 / (1 + np.exp(-8 * text.count(HARM) / (len(text) + 1))))


def with_spans(alarm: Path, folder: Path, thresholds: dict[int, float], threshold: float) -> Path:
    """A copy of the alarm with thresholds."""
    folder.mkdir()
    for file in alarm.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "guard.json").read_bytes())
    manifest["threshold"] = threshold
    manifest["spans"] = [{"tokens": n, "threshold": t} for n, t in thresholds.items()]
    (folder / "guard.json").write_text(json.dumps(manifest))
    return folder


def test_a_span_is_scored_as_the_text_that_it_is(alarm: Path) -> None:
    text = "a" * 8 + HARM * 8 + "a" * 12
    guard = Guard.load(alarm)
    plain, result = guard.score(text), guard.score(text, spans=[8])
    assert result.score == plain.score == pytest.approx(share(text), abs=1e-5)
    assert (plain.spans, plain.risk) == ((), plain.score)
    (span,) = result.spans
    assert (span.tokens, span.span) == (8, (8, 16))
    assert span.score == result.risk == pytest.approx(share(HARM * 8), abs=1e-5)


def test_a_text_is_harmful_if_a_span_is(alarm: Path) -> None:
    guard = Guard.load(alarm)
    text = "a" * 12 + HARM * 2 + "a" * 14
    threshold = (share(text) + share("aa" + HARM * 2)) / 2
    assert not guard.score(text, threshold=threshold).is_harmful
    assert guard.score(text, threshold=threshold, spans=[4]).is_harmful


def test_spans_are_held_against_thresholds_of_their_own(alarm: Path, tmp_path: Path) -> None:
    text = "a" * 12 + HARM * 2 + "a" * 14
    of_span = share("aa" + HARM * 2)
    for name, limit in (("above", of_span + 0.01), ("below", of_span - 0.01)):
        folder = with_spans(alarm, tmp_path / name, {4: limit}, 0.9)
        result = Guard.load(folder).score(text)  # which are there, so spans are the default
        assert result.spans[0].threshold == pytest.approx(limit)
        assert result.is_harmful == (name == "below")
        assert (result.risk >= result.threshold) == result.is_harmful
        assert Guard.load(folder, spans=False).score(text).spans == ()
        assert Guard.load(folder).score(text, spans=False).spans == ()


def test_the_command_shows_the_span_that_decided(alarm: Path, tmp_path: Path) -> None:
    folder = with_spans(alarm, tmp_path / "b", {4: 0.9}, 0.95)
    text = "plains, " + HARM * 4 + " and plain again"
    run = CliRunner().invoke
    (row,) = map(json.loads, run(score.app, [str(folder), text]).stdout.splitlines())
    assert (row["is_harmful"], row["spans"][0]["span"]) == (True, [8, 12])
    table = run(score.app, [str(folder), text, "--format", "table"]).stdout.splitlines()
    assert table[1].split()[1:] == [f"{share(HARM * 4):.4f}", "harmful", "8-12", HARM * 4]
    (row,) = map(json.loads, run(score.app, [str(folder), text, "--no-spans"]).stdout.splitlines())
    assert (row["is_harmful"], "spans" in row) == (False, False)


def test_a_threshold_of_a_call_moves_those_of_spans_with_it(alarm: Path, tmp_path: Path) -> None:
    guard = Guard.load(with_spans(alarm, tmp_path / "b", {4: 0.95}, 0.8))
    text = "a" * 12 + HARM * 2 + "a" * 14
    for threshold in (0.5, 0.7, 0.9, 0.99):
        result = guard.score(text, threshold=threshold)
        span = result.spans[0]
        assert result.is_harmful == (result.score >= threshold or span.score >= span.threshold)
    assert guard.score(text, threshold=0.8).spans[0].threshold == pytest.approx(0.95)


def test_tiers_go_by_the_risk(alarm: Path, tmp_path: Path) -> None:
    folder = with_spans(alarm, tmp_path / "b", {4: 0.6}, 0.5)
    manifest = json.loads((folder / "guard.json").read_bytes())
    manifest["tiers"] = [{"name": "block", "threshold": 0.9}]
    (folder / "guard.json").write_text(json.dumps(manifest))
    guard, text = Guard.load(folder), "a" * 13 + HARM * 4 + "a" * 11
    assert guard.score(text).tier == "block"
    assert guard.score(text, spans=False).tier is None


def test_a_text_no_longer_than_a_span_has_none(alarm: Path) -> None:
    guard = Guard.load(alarm)
    assert guard.score("a" * 16, spans=[16, 32]).spans == ()
    assert [span.tokens for span in guard.score("a" * 17, spans=[16, 32]).spans] == [16]


def test_the_place_of_a_span_is_that_in_the_text_as_given(alarm: Path) -> None:
    guard = Guard.load(alarm)
    text = "  a  a   a <|im_start|>  a.  " + HARM * 4 + "  aa"
    start, end = guard.score(text, spans=[6]).spans[0].span
    assert HARM * 4 in text[start:end]
    result = guard.score(prompt="aaaaaaaaaaaa", response="aaa " + HARM * 4 + " aa", spans=[6])
    start, end = result.spans[0].span
    assert HARM * 4 in ("aaaaaaaaaaaa\naaa " + HARM * 4 + " aa")[start:end]


def test_a_turn_begins_a_span(alarm: Path) -> None:
    guard = Guard.load(alarm)
    for turns in (["a" * 13, HARM * 6 + "a" * 8], ["a" * 7, "a" * 5, HARM * 6 + "a" * 8]):
        prompt, response = "\n".join(turns[:-1]), turns[-1]  # as the server joins messages
        assert guard.score(prompt=prompt, response=response, spans=[6]).spans[0].span == (14, 20)


def test_a_text_beyond_the_limit_has_spans_everywhere(alarm: Path) -> None:
    guard = Guard.load(alarm)
    for place in (0, 3, MAX_LENGTH, 200, 291):
        text = "a" * place + HARM * 8 + "a" * (292 - place)
        result = guard.score(text, spans=[8])
        start, end = result.spans[0].span
        assert text[start:end].count(HARM) >= 4
        assert guard.score(prompt=text[:150], response=text[151:], spans=[8]).spans[0].score > 0.95


def test_a_text_of_several_windows_is_tokenized_once(
    alarm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where places of tokens are needed that were not before."""
    for spans, times in (([8], 1), (False, 2)):
        guard, text = Guard.load(alarm, spans=spans), "a" * 200
        with monkeypatch.context() as patch:
            clock = Clock(patch)
            assert guard.score(text).tokens == len(text) + 1
            assert clock.characters == times * len(text)


def test_a_batch_gives_what_single_calls_give(alarm: Path) -> None:
    guard = Guard.load(alarm, spans=[8, 16])
    texts = ["a" * n + HARM * (n % 7) for n in (3, 9, 20, 31, 90, 12)]
    for one, result in zip(texts, guard.score_batch(texts), strict=True):
        alone = guard.score(one)
        assert result.score == pytest.approx(alone.score, abs=1e-6)
        assert [s.span for s in result.spans] == [s.span for s in alone.spans]
        np.testing.assert_allclose(
            [s.score for s in result.spans], [s.score for s in alone.spans], atol=1e-6
        )


def test_an_ensemble_averages_the_spans_of_its_members(alarm: Path, tmp_path: Path) -> None:
    other = with_spans(alarm, tmp_path / "other", {8: 0.7, 16: 0.8}, 0.5)
    third = with_spans(alarm, tmp_path / "third", {8: 0.9}, 0.5)
    guard = Guard.load([other, third])
    result = guard.score("a" * 10 + HARM * 8 + "a" * 9)
    (span,) = result.spans
    assert (span.tokens, span.threshold) == (8, pytest.approx(0.8))
    assert span.score == pytest.approx(share("a" * 2 + HARM * 6), abs=0.05)


def test_what_can_be_written_as_json_has_the_spans(alarm: Path) -> None:
    row = Guard.load(alarm).score("a" * 20, spans=[8]).to_dict()
    assert json.loads(json.dumps(row))["spans"][0]["tokens"] == 8
    assert "spans" not in Guard.load(alarm).score("a" * 20).to_dict()


@pytest.mark.parametrize("spans", ["all", 32, [0], [8, 8], [], [1.5], [True]])
def test_sizes_that_are_none_are_refused(alarm: Path, spans: object) -> None:
    with pytest.raises(InputError, match="spans"):
        Guard.load(alarm, spans=spans)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="spans"):
        Guard.load(alarm).score("a", spans=spans)  # type: ignore[arg-type]


def test_sizes_that_can_be_read_once_are_sizes(alarm: Path) -> None:
    guard = Guard.load(alarm, spans=iter([16, 8]))
    assert [span.tokens for span in guard.score("a" * 20).spans] == [8, 16]
    assert [span.tokens for span in guard.score("a" * 20, spans=iter([4])).spans] == [4]


def test_numpys_truth_asks_for_the_spans_that_truth_does(alarm: Path, tmp_path: Path) -> None:
    for sizes in ((), (4,)):
        bundle = with_spans(alarm, tmp_path / str(len(sizes)), dict.fromkeys(sizes, 0.9), 0.9)
        for truth in (True, False):
            given = Guard.load(bundle, spans=np.bool_(truth))  # type: ignore[arg-type]
            assert given.score("a" * 200) == Guard.load(bundle, spans=truth).score("a" * 200)


def test_limits_have_the_spans_that_are_asked_for() -> None:
    limits = Limits(spans=(4,))
    assert limits.asking(None) == limits
    numpys = (np.False_, ()), (np.True_, (7,))
    for spans, sizes in ((False, ()), (True, (7,)), *numpys, ([9, 8], (8, 9))):
        asked = limits.asking(spans, (7,))
        assert (asked.spans, asked.spans_asked) == (sizes, bool(sizes))
    assert limits.asking(True).spans == (32, 64, 128)


def _encoded(text: str) -> Encoded:
    return Encoded([0] * len(text), [(i, i + 1) for i in range(len(text))])


def _cuts(text: str, size: int) -> list[Cut]:
    return cuts(_encoded(text), text, 0, len(text), [size], 0)


def test_a_sentence_is_a_span_by_itself_where_it_fits() -> None:
    text = "One plain thing here. Do something bad now! And thanks for all.\nA line\n下一句。再一句"
    spans = {text[slice(*cut.span)].strip() for cut in _cuts(text, 24)}
    assert {"One plain thing here.", "Do something bad now!", "And thanks for all."} <= spans
    assert "A line\n下一句。再一句" in spans


def test_a_sentence_amid_others_is_a_span_of_the_smallest_size_that_holds_it() -> None:
    text = "Plain it is. Do harm. And so on. No more.\nA short line\n" + "And words. " * 9
    found = cuts(_encoded(text), text, 0, len(text), [32, 16], 0)
    places = {(cut.size, text[slice(*cut.span)]) for cut in found}
    assert {(16, "Do harm. "), (16, "And so on. "), (16, "A short line\n")} <= places
    assert not {(32, "Do harm. "), (32, "A short line\n"), (16, "Plain it is. Do harm. ")} & places
    text = "a. b. cd. " * 9
    found = cuts(_encoded(text), text, 0, len(text), [32], 0)
    assert all(cut.stop - cut.start >= 8 for cut in found)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_short_sentence_is_a_span_by_itself_whatever_the_size(size: int) -> None:
    text = (
        "Plain words and more of them stand here. " * 4
        + "Do harm. "
        + "So it is. " * 3
        + "No. " * 9
    )
    found = [text[slice(*cut.span)] for cut in _cuts(text, size)]
    assert (found.count("Do harm. "), found.count("So it is. ")) == (1, 3)
    assert found.count("No. ") <= 1  # the last, before a sentence that does not fit behind it


def test_plain_text_behind_a_sentence_does_not_hide_it_in_its_span(alarm: Path) -> None:
    text = "aaaa aa aaa aaa. " + HARM * 6 + ". aaaa. aaa aaaaa."
    (span,) = Guard.load(alarm).score(text, spans=[16]).spans
    assert text[slice(*span.span)] == HARM * 6 + ". "


_ENDS = re.compile(r"[.!?…]+[\"'”’»)\]]*\s+|[。！？।؟۔]+[”’」』）]*\s*|\n+")


@settings(max_examples=500)
@given(st.text(alphabet=".!?…。！ \n\"')」’ab", min_size=1, max_size=40), st.data())
def test_a_sentence_begins_behind_marks_what_closes_it_and_white_space(
    text: str, data: st.DataObject
) -> None:
    """Also in a part of a text, in front of which marks may stand."""
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    begins = {match.end() for match in _ENDS.finditer(text, start, stop)} - {stop}
    assert sentences(_encoded(text), text, start, stop) == [start, *sorted(begins), stop]


@pytest.mark.parametrize("text", ["." * 60_000, "?!" * 30_000 + "a", "." * 30_000 + ")" * 30_000])
def test_marks_without_end_are_read_in_no_time(text: str) -> None:
    """From the first one on: from each to the end would take some twenty times the bound."""
    encoded, start = _encoded(text), time.process_time()
    assert sentences(encoded, text, 0, len(text)) == [0, len(text)]
    assert time.process_time() - start < 2


@settings(max_examples=200)
@given(st.text(alphabet="ab .!\n。", min_size=1, max_size=200), st.sampled_from([4, 8, 32]))
def test_spans_cover_the_text_and_are_few(text: str, size: int) -> None:
    found = _cuts(text, size)
    if len(text) <= size:
        assert not found
        return
    assert all(0 <= cut.start < cut.stop <= len(text) for cut in found)
    assert all(cut.stop - cut.start <= size for cut in found)
    assert len({(cut.start, cut.stop) for cut in found}) == len(found)
    assert len(found) <= 10 * len(text) / size + 3
    for start in range(len(text) - size // 2 + 1):  # whatever is half a span long is in one
        assert any(cut.start <= start and start + size // 2 <= cut.stop for cut in found)
