"""An ensemble is a guard whose score is the mean of its members'."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from guards import load_guard
from siren_runtime import BackendError, BundleError, Guard, InputError
from siren_runtime.bundle.ensemble import is_ensemble
from siren_runtime.commands import score
from siren_runtime.commands.siren import app
from texts import TEXTS
from tiny_bundle import edit_manifest, make_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ensemble of two bundles that disagree, with a threshold and a tier of its own."""
    folder = tmp_path / "ensemble"
    make_bundle(folder / "one")
    make_bundle(folder / "two", scale=2.0)
    write(folder, threshold=0.25, tiers=[{"name": "block", "threshold": 0.4}])
    return folder


def write(folder: Path, **fields: Any) -> None:
    content = {"format_version": 1, "members": ["one", "two"], **fields}
    (folder / "ensemble.json").write_text(json.dumps(content))


def test_its_score_is_the_mean_of_its_members(folder: Path) -> None:
    ensemble = load_guard(folder)
    one, two = (load_guard(folder / name).score_batch(TEXTS) for name in ("one", "two"))
    expected = [(a.score + b.score) / 2 for a, b in zip(one, two, strict=True)]
    assert any(abs(a.score - b.score) > 1e-3 for a, b in zip(one, two, strict=True))
    scores = [result.score for result in ensemble.score_batch(TEXTS)]
    np.testing.assert_allclose(scores, expected, atol=1e-7)
    assert ensemble.score(TEXTS[0]).score == pytest.approx(expected[0], abs=1e-6)
    assert ensemble.score_streaming(TEXTS[0]).score == pytest.approx(expected[0], abs=1e-6)


def test_its_threshold_and_tiers_decide(folder: Path) -> None:
    with load_guard(folder) as ensemble:
        for result in ensemble.score_batch(TEXTS):
            assert result.threshold == 0.25
            assert result.is_harmful == (result.score >= 0.25)
            assert result.tier == ("block" if result.score >= 0.4 else None)
        assert ensemble.score(TEXTS[0], threshold=0.0).is_harmful


def test_responses_have_thresholds_and_tiers_of_their_own(folder: Path) -> None:
    tiers = [{"name": "block", "threshold": 0.4}]
    responses = {"threshold": 0.999, "tiers": [{"name": "block", "threshold": 0.001}]}
    write(folder, threshold=0.001, tiers=tiers, responses=responses)
    ensemble = Guard.load(folder)
    prompt, answer = ensemble.score("Hello"), ensemble.score(prompt="Hello", response="there")
    assert (prompt.threshold, prompt.is_harmful) == (0.001, True)
    assert (answer.threshold, answer.is_harmful, answer.tier) == (0.999, False, "block")
    assert ensemble.score(prompt="Hello", response="there", threshold=0.0).is_harmful
    listed = CliRunner().invoke(app, ["inspect", str(folder)])
    assert "from 0.999, block from 0.001" in listed.output


def test_spans_of_responses_stay_the_members(folder: Path) -> None:
    """Where ensemble.json has thresholds of texts alone, spans go by the members'."""
    own = [{"tokens": 32, "threshold": 0.9}]
    for name, high in (("one", 0.7), ("two", 0.9)):
        of_responses = {"threshold": 0.5, "spans": [{"tokens": 32, "threshold": high}]}
        changed = {"spans": own, "responses": of_responses}
        edit_manifest(folder / name, lambda manifest, changed=changed: manifest.update(changed))
    write(folder, threshold=0.5, responses={"threshold": 0.6})
    judge = Guard.load(folder).judge.primary
    assert judge.of_text(False).spans == {32: 0.9}
    assert judge.of_text(True).spans == {32: pytest.approx(0.8)}
    assert judge.of_text(True).threshold == 0.6


def test_its_own_thresholds_of_spans_decide_and_spans_are_scored_unasked(folder: Path) -> None:
    text = "how to bake a long loaf of bread and " * 4
    own = [{"tokens": 32, "threshold": 0.7}]  # of one member alone: no span of the ensemble
    edit_manifest(folder / "one", lambda manifest: manifest.update(spans=own))
    write(folder, threshold=0.999)
    assert not Guard.load(folder).score(text).spans
    tokens = {"tokens": 8, "threshold": 0.001}
    write(folder, threshold=0.999, spans=[tokens])
    result = Guard.load(folder).score(text)
    assert (result.is_harmful, [span.threshold for span in result.spans]) == (True, [0.001])
    one, two = (Guard.load(folder / n).score(text, spans=[8]).spans for n in ("one", "two"))
    assert result.spans[0].score == pytest.approx((one[0].score + two[0].score) / 2, abs=1e-6)
    answer = Guard.load(folder).score(prompt="hello", response=text)
    assert [span.threshold for span in answer.spans] == [0.001]
    listed = CliRunner().invoke(app, ["inspect", str(folder)])
    assert "spans of 8 tokens from 0.001" in listed.output
    responses = {"threshold": 0.999, "spans": [{"tokens": 8, "threshold": 0.998}]}
    write(folder, threshold=0.999, spans=[tokens], responses=responses)
    answer = Guard.load(folder).score(prompt="hello", response=text)
    assert (answer.is_harmful, [span.threshold for span in answer.spans]) == (False, [0.998])
    assert not Guard.load(folder, spans=False).score(text).is_harmful


def test_a_list_of_bundles_is_an_ensemble_too(folder: Path) -> None:
    edit_manifest(folder / "two", lambda manifest: manifest.update(threshold=0.9))
    listed = Guard.load([folder / "one", folder / "two"])
    assert listed.default_threshold == pytest.approx(0.7)  # the mean of 0.5 and 0.9
    assert listed.score("text").score == Guard.load(folder).score("text").score
    assert [manifest.threshold for manifest in listed.manifests] == [0.5, 0.9]


def test_a_bundle_counts_once_and_a_source_is_a_folder_or_a_list(folder: Path) -> None:
    with pytest.raises((BundleError, InputError), match=r"twice|once"):
        Guard.load([folder / "one", folder / "two", folder / "one"])
    with pytest.raises((BundleError, InputError), match="dict"):
        Guard.load({folder / "one": 1})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dict"):
        Guard.load(folder).score_batch({"a": "b"})


def test_its_features_are_the_members_one_after_another(folder: Path) -> None:
    parts = [
        Guard.load(folder / name).score("a", features=True).features for name in ("one", "two")
    ]
    whole = Guard.load(folder).score("a", features=True).features
    assert whole is not None
    np.testing.assert_array_equal(whole, np.concatenate([p for p in parts if p is not None]))


def test_the_score_command_takes_it(folder: Path) -> None:
    result = CliRunner().invoke(score.app, [str(folder), "text", "--format", "jsonl"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["threshold"] == 0.25


def test_it_has_manifests_and_no_manifest(folder: Path) -> None:
    with pytest.raises(InputError, match=r"the ensemble of .* member"):
        _ = Guard.load(folder).manifest


def test_an_ensemble_is_no_member_of_another(folder: Path) -> None:
    with pytest.raises(BundleError, match="cannot be a member of another"):
        Guard.load([folder, folder / "one"])


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_its_streams_score_as_it_does(folder: Path) -> None:
    ensemble = Guard.load(folder)
    with ensemble.streams(max_streams=3) as streams:
        opened = [streams.open(prompt=prompt) for prompt in ("a", "b", None)]
        for piece in ("kind", " and ", "long"):
            results = streams.feed((stream, piece) for stream in opened)
    for prompt, result in zip(("a", "b", None), results, strict=True):
        expected = ensemble.score(prompt=prompt, response="kind and long")
        assert result.score == pytest.approx(expected.score, abs=1e-6)
        assert (result.threshold, result.tier) == (0.25, expected.tier)


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_its_streams_take_text_only(folder: Path) -> None:
    with Guard.load(folder).stream() as stream:
        with pytest.raises(InputError, match="feed an ensemble text"):
            stream.feed_tokens([3, 4])
        with pytest.raises(BackendError, match="reset it"):
            stream.feed("text")
        stream.reset()
        assert 0 <= stream.feed("text").score <= 1


def test_a_closed_ensemble_does_not_score(folder: Path) -> None:
    ensemble = Guard.load(folder)
    ensemble.close()
    with pytest.raises(BackendError, match="closed"):
        ensemble.score("text")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"members": ["one"]}, "members"),
        ({"members": ["one", "one"]}, "counts once"),
        ({"members": ["one", "../ensemble/two"]}, "plain relative path"),
        ({"members": ["one", "three"]}, "three"),
        ({"format_version": 2}, "format version 2"),
        ({"threshold": 1.5}, "threshold"),
        ({"tiers": [{"name": "a", "threshold": 0.1}, {"name": "b", "threshold": 0.2}]}, "fall"),
        ({"weights": [1, 2]}, "weights"),
        ({"responses": {"threshold": 0.5}}, "other texts have none"),
        (
            {
                "threshold": 0.5,
                "responses": {"threshold": 0.5, "tiers": [{"name": "a", "threshold": 0.1}]},
            },
            "tiers of responses",
        ),
        (
            {
                "threshold": 0.5,
                "responses": {"threshold": 0.5, "spans": [{"tokens": 32, "threshold": 0.5}]},
            },
            "the spans of responses are of [32] tokens",
        ),
        (
            {"spans": [{"tokens": 64, "threshold": 0.5}, {"tokens": 32, "threshold": 0.5}]},
            "the sizes of spans must ascend",
        ),
    ],
)
def test_a_bad_manifest_is_refused_by_name(
    folder: Path, fields: dict[str, Any], message: str
) -> None:
    write(folder, **fields)
    with pytest.raises(BundleError, match=re.escape(message)):
        Guard.load(folder)


def test_what_is_no_plain_file_or_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "two").rename(tmp_path / "elsewhere")
    (folder / "two").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="'two' is behind a symbolic link"):
        Guard.load(folder)
    (folder / "ensemble.json").unlink()
    os.mkfifo(folder / "ensemble.json")
    with pytest.raises(BundleError, match=r"ensemble.json: not a regular file"):
        Guard.load(folder)
    with pytest.raises(BundleError, match=r"cannot be read: File name too long"):
        is_ensemble(tmp_path / ("x" * 300))


def test_members_of_other_classes_are_refused(folder: Path) -> None:
    edit_manifest(folder / "two", lambda m: m["heads"]["harm"].update(labels=["kind", "unkind"]))
    with pytest.raises(BundleError, match="same classes"):
        Guard.load(folder)


def test_a_damaged_member_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "two")
    make_bundle(folder / "two")
    (folder / "two" / "weights.bin").write_bytes(b"")
    with pytest.raises(BundleError, match=r"two.*weights\.bin"):
        Guard.load(folder)


def inspect_(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], env={"COLUMNS": "160"})


def test_inspect_shows_it_with_its_members(folder: Path) -> None:
    result = inspect_(folder)
    assert result.exit_code == 0, result.stderr
    facts = ("mean of 2 members' scores", "0.25", "block from 0.4", "has its size")
    for fact in (*facts, "one", "two", "example/bag-of-bytes", "fp32 for onnxruntime"):
        assert fact in result.stdout
    write(folder)
    edit_manifest(folder / "two", lambda manifest: manifest.update(threshold=0.9))
    assert "0.7, the mean of its members'" in inspect_(folder).stdout


def test_inspect_shows_hostile_members_as_they_are(folder: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["heads"]["harm"]["kind"] = "\x1b[31m[/b]"

    edit_manifest(folder / "one", edit)
    result = inspect_(folder)
    assert result.exit_code == 0, result.exception
    assert "\\x1b[31m[/b], 6 features" in result.stdout
    assert "\x1b" not in result.stdout


def test_inspect_gives_its_manifest_and_its_members_as_json(folder: Path) -> None:
    found = json.loads(inspect_(folder, "--json").stdout)
    written = json.loads((folder / "ensemble.json").read_text())
    assert found["ensemble"] == {**written, "spans": [], "responses": None}
    for name in ("one", "two"):
        assert found["members"][name] == json.loads((folder / name / "guard.json").read_bytes())


def test_inspect_checks_every_member(folder: Path) -> None:
    assert "the engine scores (on cpu + cpu)" in inspect_(folder, "--check").stdout
    weights = folder / "two" / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert inspect_(folder).exit_code == 0
    result = inspect_(folder, "--check")
    assert result.exit_code == 1
    assert "two/weights.bin: SHA-256" in result.stderr
