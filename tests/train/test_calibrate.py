"""Thresholds meet their targets, temperature makes scores honest, and the guard obeys both."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrated import write_calibration
from siren_command import siren
from siren_runtime import Guard
from siren_runtime.bundle import shipped
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.thresholds import ResponseThresholds, Tier
from siren_runtime.errors import BundleError, InputError
from siren_train.commands.calibration_shown import print_decision
from siren_train.measure.calibrate_responses import choose_thresholds, choose_tiers
from siren_train.measure.evaluate import Scores
from siren_train.measure.metrics import binary_metrics, calibration_error, precision_recall
from siren_train.measure.temperature import FITTING_TEMPERATURE, fit_temperature
from siren_train.measure.threshold_rules import find_threshold
from siren_train.measure.tiers import make_tiers, read_tiers
from tiny_bundle import make_bundle


def make_scores(values: list[float], harmful: list[bool]) -> Scores:
    names = np.array(["data"] * len(values))
    return Scores(np.array(values, np.float64), np.array(harmful), names, names)


def noisy_scores(rows: int = 2000, *, sharpness: float = 1.0) -> Scores:
    """Scores whose log-odds are `sharpness` times the honest ones."""
    rng = np.random.default_rng(0)
    log_odds = rng.normal(0, 2, rows)
    harmful = rng.random(rows) < 1 / (1 + np.exp(-log_odds))
    names = np.array(["data"] * rows)
    return Scores(1 / (1 + np.exp(-sharpness * log_odds)), harmful, names, names)


rows = st.lists(
    st.tuples(st.integers(0, 99).map(lambda n: n / 100), st.booleans()), min_size=2, max_size=80
).filter(lambda pairs: {True, False} == {harmful for _, harmful in pairs})


@given(rows, st.floats(0.0, 1.0))
def test_thresholds_meet_their_targets(pairs: list[tuple[float, bool]], target: float) -> None:
    scores = make_scores([p[0] for p in pairs], [p[1] for p in pairs])
    threshold = find_threshold(scores, f"fpr:{target}")
    assert (scores.scores[~scores.harmful] >= threshold).mean() <= target
    recall = binary_metrics(
        scores.harmful, scores.scores, find_threshold(scores, f"recall:{target}")
    ).recall
    assert recall is not None
    assert recall >= target
    reachable = max(precision_recall(scores.harmful, scores.scores)[0])
    if reachable < target:
        with pytest.raises(InputError, match="the best is"):
            find_threshold(scores, f"precision:{target}")
        return
    threshold = find_threshold(scores, f"precision:{target}")
    precision = binary_metrics(scores.harmful, scores.scores, threshold).precision
    assert precision is not None
    assert precision >= target


def test_a_share_of_rows_is_counted_exactly() -> None:
    scores = make_scores([index / 200 for index in range(100)], [False] * 100)
    assert (scores.scores >= find_threshold(scores, "fpr:0.29")).sum() == 29


def test_the_best_threshold_is_the_middle_of_the_best() -> None:
    scores = make_scores([0.1, 0.2, 0.6, 0.9], [False, False, True, True])
    assert find_threshold(scores, "best") == pytest.approx(0.4, abs=0.02)
    assert find_threshold(scores, "0.75") == 0.75


@pytest.mark.parametrize("rule", ["", "fpr", "fpr:", "fpr:2", "best:1", "1.5", "-0.1", "nan", "f1"])
def test_a_rule_that_is_none_is_refused(rule: str) -> None:
    with pytest.raises(InputError, match="is no rule for a threshold"):
        find_threshold(noisy_scores(10), rule)


def test_no_threshold_can_pass_a_safe_score_of_one() -> None:
    with pytest.raises(InputError, match="1 of them score 1"):
        find_threshold(make_scores([1.0, 0.9], [False, True]), "fpr:0.1")


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_temperature_undoes_overconfidence(sharpness: float) -> None:
    temperature = fit_temperature(noisy_scores(20_000, sharpness=sharpness / FITTING_TEMPERATURE))
    assert temperature == pytest.approx(sharpness, rel=0.05)
    tempered = noisy_scores(20_000, sharpness=sharpness / temperature)
    assert calibration_error(tempered.harmful, tempered.scores) < 0.02


def test_calibration_changes_what_the_guard_says(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    texts = ["a", "hello", "zzzz", "how do I bake bread?"]
    before = [result.score for result in Guard.load(bundle).score_batch(texts)]
    assert Guard.load(bundle).score("a").tier is None
    middle = float(np.median(before))
    tiers = make_tiers({"review": 0.0, "block": middle}, "test")
    write_calibration(bundle, threshold=middle, tiers=tiers, temperature=2.0)
    guard = Guard.load(bundle, verify="full")
    assert guard.default_threshold == middle
    for result, score in zip(guard.score_batch(texts), before, strict=True):
        expected = 1 / (1 + ((1 - score) / score) ** 0.5)
        assert result.score == pytest.approx(expected, abs=1e-6)
        assert result.tier == ("block" if result.score >= middle else "review")
        assert result.to_dict()["tier"] == result.tier


def test_calibration_keeps_what_it_does_not_set(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    write_calibration(bundle, tiers=make_tiers({"block": 0.9}, "test"))
    manifest = write_calibration(bundle, threshold=0.25)
    assert [tier.name for tier in manifest.tiers] == ["block"]
    assert (manifest.threshold, manifest.temperature) == (0.25, 1.0)


def test_a_temperature_alone_changes_no_verdict(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    texts = ["a", "hello", "zzzz", "how do I bake bread?"]
    low, high = np.quantile([r.score for r in Guard.load(bundle).score_batch(texts)], [0.3, 0.7])
    tiers = make_tiers({"block": float(high), "log": 0.0}, "test")
    write_calibration(bundle, threshold=float(low), tiers=tiers)
    before = [(r.is_harmful, r.tier) for r in Guard.load(bundle).score_batch(texts)]
    assert len(set(before)) == 3
    for temperature in (0.2, 5.0):
        write_calibration(bundle, temperature=temperature)
        assert [(r.is_harmful, r.tier) for r in Guard.load(bundle).score_batch(texts)] == before


def test_a_tier_file_is_read_by_falling_threshold(tmp_path: Path) -> None:
    path = tmp_path / "tiers.json"
    path.write_text('{"log": 0.2, "block": 0.9, "review": 0.5}')
    assert [tier.name for tier in read_tiers(path)] == ["block", "review", "log"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected an object of tier names"),
        ("{", "expected an object of tier names"),
        ('{"block": "high"}', "expected an object of tier names"),
        ("{}", "no tiers"),
        ('{"block": 0.9, "block": 0.5}', "names a tier twice, found block, block"),
        ('{"block": 1.5}', "tier 'block' is 1.5"),
        ('{"": 0.5}', "tier '' is 0.5"),
        ('{"block": 0.5, "review": 0.5}', "thresholds must fall"),
    ],
)
def test_a_bad_tier_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tiers.json"
    path.write_text(content)
    with pytest.raises((InputError, BundleError), match=message) as error:
        read_tiers(path)
    assert "tiers.json" in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"tiers": [{"name": "a", "threshold": 0.1}, {"name": "b", "threshold": 0.9}]},
        {"tiers": [{"name": "a", "threshold": 0.9}, {"name": "a", "threshold": 0.1}]},
        {"tiers": [{"name": "a", "threshold": 2}]},
        {"temperature": 0},
        {"temperature": -1.0},
    ],
)
def test_a_manifest_edited_into_nonsense_is_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    path = bundle / "guard.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BundleError, match=r"guard\.json"):
        Guard.load(bundle)


def with_responses(rows: int) -> Scores:
    """So many rows, every second one a response, whose scores are higher than the others'."""
    scores = noisy_scores(rows)
    has_response = np.arange(rows) % 2 == 1
    values = np.where(has_response, scores.scores**0.25, scores.scores)
    return replace(scores, scores=values, has_response=has_response)


def test_texts_and_responses_get_thresholds_by_their_own_rows() -> None:
    scores = with_responses(2000)
    found = choose_thresholds(scores, "best")
    assert found is not None
    assert found[1] > found[0]
    decision = Decision(found[0], responses=ResponseThresholds(found[1]))
    rules = {"block": "fpr:0.01", "review": "fpr:0.05"}
    for tiers, rows in zip(
        choose_tiers(scores, rules, decision, each=True),
        (scores.of(~scores.has_response), scores.of(scores.has_response)),
        strict=True,
    ):
        safe = rows.scores[~rows.harmful]
        assert [tier.name for tier in tiers] == ["block", "review"]
        for tier, rate in zip(tiers, (0.01, 0.05), strict=True):
            assert 0 < (safe >= tier.threshold).mean() <= rate


def test_rules_that_order_the_tiers_of_prompts_and_responses_otherwise_are_refused() -> None:
    """To flag no safe row takes less than to find most harmful prompts, and more in responses."""
    prompts, responses = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0.1, 0.2, 0.85, 0.4, 0.5, 0.9]
    scores = make_scores([*prompts, *responses], 2 * [False, False, False, True, True, True])
    scores = replace(scores, has_response=np.arange(12) >= 6)
    rules, decision = {"block": "fpr:0", "review": "recall:0.6"}, Decision(0.5)
    with pytest.raises(InputError, match=r"prompts and for responses: review from .*, block from"):
        choose_tiers(scores, rules, decision, each=True)
    (together,) = choose_tiers(scores, rules, decision, each=False)
    assert [tier.name for tier in together] == ["block", "review"]


def test_responses_keep_tiers_and_threshold_where_they_get_no_new_ones(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    write_calibration(bundle, tiers=make_tiers({"block": 0.9}, "test"))
    found = choose_thresholds(with_responses(2000), "best")
    assert found is not None
    responses = ResponseThresholds(found[1])
    manifest = write_calibration(bundle, threshold=found[0], responses=responses)
    assert manifest.responses == replace_tiers(responses, manifest.tiers)
    tiers = make_tiers({"stop": 0.95, "look": 0.5}, "test")
    manifest = write_calibration(bundle, tiers=tiers)
    assert manifest.responses == replace_tiers(responses, tiers)
    assert manifest.threshold == found[0]


def test_the_command_says_that_responses_lose_their_threshold(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    write_calibration(bundle, threshold=0.5, responses=ResponseThresholds(0.7))
    kept = siren("calibrate", bundle, "--tier", "block=0.9")
    assert (kept.exit_code, "responses had" in kept.stderr) == (0, False)
    lost = siren("calibrate", bundle, "--threshold", "0.4")
    assert (lost.exit_code, "responses had" in lost.stderr) == (0, True)


def test_the_command_says_which_tiers_are_no_more(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    first = siren("calibrate", bundle, "--tier", "block=0.9", "--tier", "review=0.5")
    assert "dropped" not in first.stderr
    second = siren("calibrate", bundle, "--tier", "block=0.8")
    assert "dropped: review" in second.stderr


def replace_tiers(responses: ResponseThresholds, tiers: list[Tier]) -> ResponseThresholds:
    return ResponseThresholds(responses.threshold, tiers)


@pytest.mark.parametrize("which", [True, False])
def test_what_was_found_is_shown_where_all_rows_are_responses_or_none(
    which: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = replace(noisy_scores(50), has_response=np.full(50, which))
    print_decision(Decision(0.5, responses=ResponseThresholds(0.7)), scores, "test")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("responses, threshold: from 0.7" if which else "threshold: from 0.5")


def test_where_rows_are_too_few_all_texts_have_one_threshold() -> None:
    assert choose_thresholds(with_responses(300), "best") is None


def test_a_name_is_the_bundle_that_a_guard_is_loaded_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped guard's, but a folder of that name goes before it."""
    recipe = tmp_path / "engines" / "tiny"
    recipe.mkdir(parents=True)
    (recipe / "recipe.json").write_text("{}")
    monkeypatch.setattr(shipped, "ENGINES", recipe.parent)
    monkeypatch.setattr(shipped, "IN_CHECKOUT", True)
    monkeypatch.chdir(tmp_path)
    make_bundle(recipe / "bundle")
    assert siren("calibrate", "tiny", "--threshold", 0.25).exit_code == 0
    assert Guard.load("tiny").manifest.threshold == 0.25
    make_bundle(tmp_path / "tiny")
    assert siren("calibrate", "tiny", "--threshold", 0.75).exit_code == 0
    assert Guard.load("tiny").manifest.threshold == 0.75
    assert Guard.load(recipe / "bundle").manifest.threshold == 0.25
