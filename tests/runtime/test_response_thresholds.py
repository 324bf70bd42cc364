"""A text with a response has thresholds of its own, by every way in, and where there are some."""

import asyncio
import shutil
from pathlib import Path

import pytest

from calibrated import write_calibration
from siren_runtime import AsyncGuard, BundleError, Guard, ScoreResult
from siren_runtime.bundle.manifest import MANIFEST_FILE, decode
from siren_runtime.bundle.thresholds import ResponseThresholds, SpanThreshold, Tier
from siren_train.measure.tiers import make_tiers
from tiny_bundle import edit_manifest, make_bundle

PROMPT, RESPONSE = "how do I bake bread?", "mix flour and water"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every text is harmful and in the tier `block`; one with a response neither."""
    folder = make_bundle(tmp_path_factory.mktemp("responses") / "bundle")
    tiers = make_tiers({"block": 0.001, "review": 0.0}, "test")
    responses = ResponseThresholds(0.999, [Tier("block", 0.999), Tier("review", 0.0)])
    write_calibration(folder, threshold=0.001, tiers=tiers, responses=responses)
    return folder


@pytest.fixture(scope="module")
def guard(bundle: Path) -> Guard:
    return Guard.load(bundle)


@pytest.mark.parametrize("prompt", [PROMPT, "", None])
def test_a_response_is_decided_on_by_its_own_thresholds(guard: Guard, prompt: str | None) -> None:
    result = guard.score(prompt=prompt, response=RESPONSE)
    assert (result.is_harmful, result.threshold, result.tier) == (False, 0.999, "review")
    assert result.as_response
    assert result.to_dict()["as_response"] is True


@pytest.mark.parametrize("given", [{"text": PROMPT}, {"prompt": PROMPT}])
def test_a_text_without_one_by_those_of_all_others(guard: Guard, given: dict[str, str]) -> None:
    result = guard.score(**given)
    assert (result.is_harmful, result.threshold, result.tier) == (True, 0.001, "block")
    assert not result.as_response
    assert "as_response" not in result.to_dict()


def test_an_empty_response_is_none(guard: Guard) -> None:
    assert not guard.score(prompt=PROMPT, response="").as_response


def test_a_batch_decides_on_each_text_by_itself(guard: Guard) -> None:
    pair = (PROMPT, RESPONSE)
    results = guard.score_batch([PROMPT, pair, (PROMPT, None), (None, RESPONSE)])
    assert [result.as_response for result in results] == [False, True, False, True]
    assert [result.is_harmful for result in results] == [True, False, True, False]


def test_a_threshold_of_the_call_holds_for_both_and_tiers_stay_their_own(guard: Guard) -> None:
    results = guard.score_batch([PROMPT, (PROMPT, RESPONSE)], threshold=0.0)
    assert [(r.is_harmful, r.threshold, r.tier) for r in results] == [
        (True, 0.0, "block"),
        (True, 0.0, "review"),
    ]


def test_callers_that_share_runs_get_the_same_verdicts(guard: Guard) -> None:
    async def ask() -> ScoreResult:
        async with AsyncGuard(guard) as shared:
            return await shared.score(prompt=PROMPT, response=RESPONSE)

    result = asyncio.run(ask())
    assert (result.is_harmful, result.as_response) == (False, True)


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_a_stream_decides_as_the_whole_text_so_far(guard: Guard) -> None:
    with guard.stream(PROMPT, rules=guard.tiers_of(PROMPT)) as stream:
        before = stream.feed("")
        assert (before.is_harmful, before.threshold, before.as_response) == (True, 0.001, False)
        result = stream.feed(RESPONSE)
        whole = guard.score(prompt=PROMPT, response=RESPONSE)
        assert (result.is_harmful, result.threshold, result.tier, result.as_response) == (
            (whole.is_harmful, whole.threshold, whole.tier, whole.as_response)
        )
        assert {decision.rule for decision in result.decisions} == {"tier(review, 0)"}
        stream.reset()
        assert not stream.feed("").as_response
    with guard.stream() as stream:
        assert stream.feed(RESPONSE).is_harmful


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_a_streamed_answer_to_an_empty_prompt_is_a_response(guard: Guard) -> None:
    whole = guard.score(response=RESPONSE)
    with guard.stream("") as stream:
        result = stream.feed(RESPONSE)
    assert result.score == pytest.approx(whole.score, abs=1e-6)
    assert (result.is_harmful, result.threshold, result.as_response) == (False, 0.999, True)


def test_a_bundle_without_them_decides_on_all_texts_alike(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    fields = decode((folder / MANIFEST_FILE).read_bytes(), "test")
    assert fields.responses is None
    edit_manifest(folder, lambda manifest: manifest.pop("responses", None))  # as older releases
    one, other = Guard.load(folder).score_batch([RESPONSE, (None, RESPONSE)])
    assert one == other


def test_of_an_ensemble_the_mean_of_the_members_is_taken(bundle: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other")
    write_calibration(other, threshold=0.5)
    guard = Guard.load([bundle, other])
    assert guard.score(prompt=PROMPT, response=RESPONSE).threshold == pytest.approx(0.7495)
    assert guard.score(PROMPT).threshold == pytest.approx(0.2505)


def test_spans_of_a_response_have_thresholds_of_their_own(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    of_texts, own = [SpanThreshold(8, 0.0)], [SpanThreshold(8, 1.0)]
    write_calibration(folder, threshold=0.999, spans=of_texts)
    write_calibration(folder, threshold=0.999, responses=ResponseThresholds(0.999, spans=own))
    text, pair = Guard.load(folder).score_batch([PROMPT, (PROMPT, RESPONSE)])
    assert (text.is_harmful, text.spans[0].threshold) == (True, pytest.approx(0.0, abs=1e-9))
    assert (pair.is_harmful, pair.spans[0].threshold) == (False, pytest.approx(1.0))
    kept = write_calibration(folder, threshold=0.99, responses=ResponseThresholds(0.99))
    assert kept.responses == ResponseThresholds(0.99, spans=own)
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    mean = Guard.load([folder, other]).score(prompt=PROMPT, response=RESPONSE)
    assert mean.spans[0].threshold == pytest.approx(1.0)
    anew = write_calibration(folder, spans=of_texts)  # by rows of all kinds
    assert anew.responses == ResponseThresholds(0.99)
    with pytest.raises(BundleError, match="spans of responses are of"):
        write_calibration(folder, responses=ResponseThresholds(0.9, spans=[SpanThreshold(9, 1.0)]))


def test_their_tiers_have_the_names_of_the_others(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    responses = ResponseThresholds(0.5, [Tier("else", 0.9)])
    with pytest.raises(BundleError, match="tiers of responses are"):
        write_calibration(folder, responses=responses)


def test_a_new_threshold_holds_for_all_texts_and_a_temperature_moves_both(bundle: Path) -> None:
    before = Guard.load(bundle).score_batch([PROMPT, (PROMPT, RESPONSE)])
    try:
        moved = write_calibration(bundle, temperature=2.0)
        assert moved.responses is not None
        assert moved.responses.threshold == pytest.approx(1 / (1 + (0.001 / 0.999) ** 0.5))
        after = Guard.load(bundle).score_batch([PROMPT, (PROMPT, RESPONSE)])
        assert [r.is_harmful for r in after] == [r.is_harmful for r in before]
    finally:
        assert write_calibration(bundle, threshold=0.5).responses is None
