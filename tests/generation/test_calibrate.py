"""What a generator makes of written texts, and thresholds that are chosen by it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sklearn.metrics import f1_score

from generators import need_genai
from labelled import make_rows, write_jsonl
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import BundleError, Guard, GuardedGenerator, InputError, InterruptedCall
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.progress import silent
from siren_runtime.bundle.thresholds import ResponseThresholds, Tier
from siren_train.data.rows import Columns
from siren_train.data.sources import parse_source
from siren_train.measure.generator import score_with_generator, write_graft_decision

need_genai()
PROMPT, RESPONSE = "The history of bread", "It begins with grain and water."


def test_a_written_response_is_read_as_if_the_model_had_chosen_its_tokens(
    guarded: GuardedGenerator,
    head: Path,
    backbone: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    artifact = load_artifact(head)
    export_bundle(artifact, load_checkpoint(str(backbone("llama"))), tmp_path / "bundle")
    guard = Guard.load(tmp_path / "bundle", backend="cpu", threads=1)
    prompt, response = guarded.prompt_tokens(PROMPT, True, 8), guarded.engine.encode(RESPONSE)
    with guard.stream() as stream:
        of_prompt, of_both = stream.feed_tokens(prompt), stream.feed_tokens(response)
    alone, found = guarded.read(PROMPT), guarded.read(PROMPT, RESPONSE)
    assert alone.score == pytest.approx(of_prompt.score, abs=1e-4)
    assert found.score == pytest.approx(of_both.score, abs=1e-4)
    assert found.tokens == len(prompt) + len(response)
    with guarded.generate(PROMPT, max_tokens=1, threshold=1.0) as generation:
        assert generation.prompt.score == alone.score
    assert guarded.read(PROMPT, RESPONSE, threshold=found.score).is_harmful
    with pytest.raises(InputError, match="surrogate"):
        guarded.read(PROMPT, "\ud800")
    with pytest.raises(InputError, match="response"):
        guarded.read(PROMPT, "word " * 9999)
    with pytest.raises(InterruptedCall):
        guarded.read(PROMPT, RESPONSE, deadline=1e-9)


def test_a_threshold_and_tiers_are_chosen_by_what_the_generator_reads(
    copied: Path, guarded: GuardedGenerator, tmp_path: Path
) -> None:
    fields = make_rows(40)
    long = {**fields[0], "id": "long", "prompt": "word " * 9999}
    data = write_jsonl(tmp_path / "data.jsonl", [*fields, long])
    ran = siren(
        *("calibrate", copied, data, "--split", "train", "--threads", 1),
        *("--threshold", "best", "--tier", "block=fpr:0.1"),
    )
    assert ran.exit_code == 0, ran.output
    assert "1 rows were left out, the first since the prompt has" in ran.stderr
    calibrated = GuardedGenerator.load(copied, threads=1)
    decision = calibrated.manifest.decision("harm")
    assert f"threshold: from {decision.threshold:.4f}" in ran.stdout
    (tier,) = decision.tiers
    rows = [row for row in fields if row["split"] == "train"]
    scores = [guarded.read(row["prompt"], row["response"] or "").score for row in rows]
    safe = [score for score, row in zip(scores, rows, strict=True) if not row["label"]]
    assert sum(score >= tier.threshold for score in safe) <= 0.1 * len(safe)

    def macro_f1(threshold: float) -> float:
        verdicts = [score >= threshold for score in scores]
        return float(f1_score([row["label"] for row in rows], verdicts, average="macro"))

    others = [number / 100 for number in range(1, 100)]
    assert macro_f1(decision.threshold) == pytest.approx(max(map(macro_f1, others)))
    assert macro_f1(decision.threshold) > max(macro_f1(0.0), macro_f1(1.0))
    result = calibrated.read(rows[0]["prompt"])
    assert result.threshold == decision.threshold
    assert result.tier == ("block" if result.score >= tier.threshold else None)


def test_where_the_head_was_trained_on_plain_text_rows_are_read_so(
    copied: Path, tmp_path: Path
) -> None:
    manifest = json.loads((copied / "guard.json").read_text())
    manifest["trained_on"] = {"engine": manifest["engine"], "text": "plain"}
    (copied / "guard.json").write_text(json.dumps(manifest))
    plain = GuardedGenerator.load(copied, threads=1)
    pair = {"prompt": PROMPT, "response": RESPONSE, "label": 1, "split": "test"}
    data = write_jsonl(tmp_path / "data.jsonl", [pair, {**pair, "response": None, "label": 0}])
    sources = [parse_source(str(data))]
    found, refusals = score_with_generator(plain, "harm", sources, Columns(), "test", None, silent)
    assert not refusals
    expected = {
        True: plain.read(f"{PROMPT}\n", RESPONSE, chat=False).score,
        False: plain.read(PROMPT, chat=False).score,
    }
    assert dict(zip(found.has_response.tolist(), found.scores, strict=True)) == expected


def test_numbers_need_no_rows_and_what_a_generator_does_not_take_is_refused(
    copied: Path, tmp_path: Path
) -> None:
    before = (copied / "guard.json").read_bytes()
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(10))
    for arguments, message in (
        ((), "give --threshold"),
        (("--threshold", "best"), "labelled text is needed"),
        ((data, "--temperature"), "or an ensemble takes"),
        ((data, "--threshold", "best", "--record", tmp_path), "or an ensemble takes"),
        ((data, "--threshold", "best", "--pool", "response"), "or an ensemble takes"),
        (("--threshold", "0.7", "--responses"), "labelled text"),
        (("--threshold", "0.7", "--head", "kinds"), "found 'kinds'"),
        ((data, "--threshold", "most", "--split", "train"), "no rule"),
        ((data, "--threshold", "best", "--split", "none"), "no rows of the 'none' split"),
    ):
        ran = siren("calibrate", copied, *arguments)
        assert ran.exit_code != 0
        assert message in " ".join(ran.output.replace("│", " ").split())
        assert (copied / "guard.json").read_bytes() == before
    assert siren("calibrate", copied, "--threshold", "0.7", "--tier", "b=0.9").exit_code == 0
    decision = json.loads((copied / "guard.json").read_text())["decisions"]["harm"]
    assert (decision["threshold"], decision["tiers"]) == (0.7, [{"name": "b", "threshold": 0.9}])
    assert GuardedGenerator.load(copied, threads=1).read(PROMPT).threshold == 0.7


def test_a_decision_that_contradicts_itself_leaves_the_old_one(copied: Path) -> None:
    before = (copied / "guard.json").read_bytes()
    high, low = Tier("block", 0.9), Tier("review", 0.5)
    others = ResponseThresholds(0.5, [Tier("review", 0.9), Tier("block", 0.5)])
    for wrong in (Decision(0.5, [low, high]), Decision(0.5, [high, low], responses=others)):
        with pytest.raises(BundleError, match=r"guard\.json.*tiers"):
            write_graft_decision(copied, "harm", wrong)
        assert (copied / "guard.json").read_bytes() == before
