"""Trajectory heads: a bundle scores as llm-siren's AgentSirenGuard does, whole and growing."""

import asyncio
import json
import os
import shutil
import threading
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from siren_guard import AgentSirenGuard

from gguf_files import write_gguf
from models import make_artifact
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.reference import LlmSiren
from siren_runtime import (
    AsyncGuard,
    BundleError,
    CheckpointError,
    Guard,
    InputError,
    InterruptedCall,
    SharedGuard,
)
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.scoring.explain import Explainer
from siren_runtime.text.reading import AS_LLM_SIREN
from trajectories import (
    CHATML,
    MESSAGES,
    TEMPLATES,
    TOOLS,
    TRAJECTORIES,
    UNREAD,
    make_trajectory_head,
)

BOUND = 1e-4
# More are scored by SIREN_TRAJECTORIES=200.
EXAMPLES = int(os.environ.get("SIREN_TRAJECTORIES", "12"))
WHOLE = {"messages": MESSAGES, "tools": TOOLS}


@pytest.fixture(scope="module")
def pair(trajectory_bundle):
    """A function: as `trajectory_bundle` -> the guard, and llm-siren's."""
    cases = {}

    def open_both(*args, **options):
        head, bundle = trajectory_bundle(*args, **options)
        if head not in cases:
            theirs = AgentSirenGuard.from_pretrained(str(head), device="cpu", dtype=torch.float32)
            cases[head] = Guard.load(bundle, threads=1, **AS_LLM_SIREN), theirs
        return cases[head]

    return open_both


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral", "gemma3"])
def test_every_turn_scores_as_llm_siren_scores_it(pair, name, template):
    for max_length in (48, 1000):
        ours, theirs = pair(name, template, max_length=max_length)
        prefixes = [{**WHOLE, "messages": MESSAGES[: n + 1]} for n in range(2, len(MESSAGES))]
        found = ours.score_trajectories(prefixes)
        expected = [theirs.score_trajectory(**prefix).score for prefix in prefixes]
        np.testing.assert_allclose([r.score for r in found], expected, rtol=0, atol=BOUND)
        assert np.std(expected) > 10 * BOUND
        for prefix, result in zip(prefixes, found, strict=True):
            assert result.truncated == (result.tokens > max_length)
            assert (result.omitted is not None) == result.truncated
            assert ours.score_trajectory(prefix).score == pytest.approx(result.score, abs=1e-6)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("max_length", [7, 64])
def test_any_trajectory_scores_as_llm_siren_scores_it(pair, template, max_length):
    ours, theirs = pair("qwen3", template, max_length=max_length)

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(TRAJECTORIES)
    def agree(example):
        try:
            expected = theirs.score_trajectory(**example).score
        except Exception:
            with pytest.raises(InputError):
                ours.score_trajectory(**example)
            return
        assert ours.score_trajectory(**example).score == pytest.approx(expected, abs=BOUND)

    agree()


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_only_the_blocks_below_the_state_are_in_the_graph(pair, trajectory_bundle, blocks):
    ours, theirs = pair(blocks=blocks)
    backbone = ours.manifest.backbone
    assert (backbone.blocks_kept, backbone.blocks) == (blocks, 4)
    expected = theirs.score_trajectory(**WHOLE).score
    assert ours.score_trajectory(**WHOLE).score == pytest.approx(expected, abs=BOUND)
    if (
        blocks < backbone.blocks
    ):  # of the last one llm-siren reads the raw stream, early exit or not
        head, _ = trajectory_bundle(blocks=blocks)
        whole = AgentSirenGuard.from_pretrained(
            str(head), device="cpu", dtype=torch.float32, early_exit=False
        )
        assert whole.score_trajectory(**WHOLE).score == pytest.approx(expected, abs=1e-5)


def test_a_long_trajectory_is_refused_where_long_texts_are(pair, trajectory_bundle):
    """A stream over it too; its middle is left out otherwise."""
    guard, _ = pair()
    strict = Guard.load(trajectory_bundle()[1], threads=1, long_text="refuse")
    assert guard.score_trajectory(**WHOLE).truncated
    with pytest.raises(InputError, match="the guard reads 48 at once"):
        strict.score_trajectory(**WHOLE)
    with strict.stream_trajectory() as stream:
        assert stream.feed(*MESSAGES[2:3]).tokens < 48
        with pytest.raises(InputError, match="the guard reads 48 at once"):
            stream.score(MESSAGES)


def test_a_truncated_trajectory_says_what_was_not_read(pair):
    guard, theirs = pair()
    result, text = guard.score_trajectory(**WHOLE), guard.render_trajectory(WHOLE)
    start, end = result.omitted
    tokenizer = guard.scorers[0].tokenizer
    kept = tokenizer.encode(text[:start]).ids + tokenizer.encode(text[end:]).ids
    assert len(kept) == guard.manifest.text.max_length < result.tokens
    assert result.truncated
    assert result.span is None
    assert result.to_dict()["omitted"] == result.omitted
    whole = guard.score_trajectory(messages=MESSAGES[2:3])
    assert (whole.truncated, whole.omitted) == (False, None)
    assert "omitted" not in whole.to_dict()
    assert result.to_dict()["unread"] == [*result.unread] == UNREAD
    assert (whole.unread, "unread" in whole.to_dict()) == ((), False)
    assert text == theirs._tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False
    ).replace("<|im_start|>user\nx<|im_end|>\n", text)


def test_an_export_is_verified_against_llm_siren(trajectory_bundle, tmp_path):
    head, _ = trajectory_bundle()
    artifact = load_artifact(head)
    checkpoint = load_checkpoint(artifact.model_id)
    reference = LlmSiren(artifact, checkpoint).scores
    manifest = export_bundle(artifact, checkpoint, tmp_path / "good", reference=reference)
    report = manifest.verification
    assert (report.status, report.texts, report.stream_texts) == ("passed", 16, 15)
    assert manifest.task == "trajectory"
    other = replace(artifact, head=replace(artifact.head, bias=artifact.head.bias + 0.1))
    with pytest.raises(BundleError, match="drift from llm-siren"):
        export_bundle(other, checkpoint, tmp_path / "bad", reference=reference)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_precision_exports_and_streams(trajectory_bundle, precision):
    guard = Guard.load(trajectory_bundle(precision=precision)[1], threads=1, **AS_LLM_SIREN)
    exact = Guard.load(trajectory_bundle()[1], threads=1, **AS_LLM_SIREN)
    found, expected = (g.score_trajectory(**WHOLE).score for g in (guard, exact))
    assert found == pytest.approx(expected, abs={"fp16": 5e-3, "int8": 0.2, "int4": 0.5}[precision])
    with guard.stream_trajectory(TOOLS) as stream:
        assert 0 <= stream.feed(*MESSAGES).score <= 1


def test_an_ensemble_takes_the_mean(trajectory_bundle):
    bundles = [trajectory_bundle(max_length=length)[1] for length in (48, 1000)]
    guards = [Guard.load(bundle, threads=1, **AS_LLM_SIREN) for bundle in bundles]
    both = Guard.load(bundles, threads=1, **AS_LLM_SIREN)
    mean = np.mean([guard.score_trajectory(**WHOLE).score for guard in guards])
    assert both.score_trajectory(**WHOLE).score == pytest.approx(mean, abs=1e-6)
    with both.stream_trajectory(TOOLS) as stream:
        assert stream.feed(*MESSAGES).score == pytest.approx(mean, abs=1e-5)


def test_a_guard_of_trajectories_scores_no_texts(trajectory_bundle, tmp_path, backbone_folder):
    _, bundle = trajectory_bundle()
    guard = Guard.load(bundle, threads=1)
    uses = (
        lambda: guard.score("hello"),
        lambda: guard.score(prompt="a", response="b"),
        lambda: guard.score("hello", spans=True),
        lambda: guard.score_batch(["hello"]),
        lambda: guard.score_each(["hello"]),
        lambda: guard.score_streaming("hello"),
        lambda: guard.stream(),
        lambda: guard.streams(),
        lambda: SharedGuard(guard).score("hello"),
        lambda: Explainer(bundle, threads=1).explain("hello"),
    )
    for use in uses:
        with pytest.raises(InputError, match="scores trajectories of agents, and no texts"):
            use()
    with pytest.raises(InputError, match="trajectories, which have no spans"):
        Guard.load(bundle, spans=True)
    content = tmp_path / "content"
    head = load_artifact(make_artifact(tmp_path / "head", backbone_folder("qwen3")))
    export_bundle(head, load_checkpoint(backbone_folder("qwen3")), content)
    with pytest.raises(BundleError, match="same heads"):
        Guard.load([content, bundle])
    texts = Guard.load(content, threads=1)
    for use in (
        lambda: texts.score_trajectory(**WHOLE),
        lambda: texts.score_trajectories([WHOLE]),
        lambda: texts.stream_trajectory(),
        lambda: texts.render_trajectory(WHOLE),
    ):
        with pytest.raises(InputError, match="scores texts, and no trajectories"):
            use()


def test_a_deadline_and_a_cancelled_caller_end_calls_of_many_trajectories(trajectory_bundle):
    guard, gone = Guard.load(trajectory_bundle()[1], threads=1), threading.Event()
    (whole,) = guard.score_trajectories([WHOLE], features=True, deadline=100, cancel=gone)
    one = guard.score_trajectory(WHOLE, features=True)
    np.testing.assert_array_equal(whole.features, one.features)
    gone.set()
    for score in (guard.score_trajectories, guard.score_each_trajectory):
        with pytest.raises(InterruptedCall, match=r"1e-09 s passed with 0 of 2 trajectories"):
            score([WHOLE, WHOLE], deadline=1e-9)
        with pytest.raises(InterruptedCall, match="cancelled with 0 of 2 trajectories"):
            score([WHOLE, WHOLE], cancel=gone)


def test_bad_trajectories_are_errors_in_their_places(trajectory_bundle):
    guard = Guard.load(trajectory_bundle()[1], threads=1, max_bytes_per_text=2000)
    large = [{"role": "user", "content": "a " * 3000}]
    results = guard.score_each_trajectory([WHOLE, "text", [], large, [{"role": "x"}], WHOLE])
    assert results[0] == results[5]
    assert [isinstance(result, InputError) for result in results] == [False, *[True] * 4, False]
    assert "bytes or more, at most 2,000" in str(results[3])
    with pytest.raises(InputError, match=r"trajectories\[1\]: a trajectory is a list of messages"):
        guard.score_trajectories([WHOLE, "text"])
    for wrong in ("text", WHOLE, 3):
        with pytest.raises(InputError, match="takes a list of trajectories"):
            guard.score_trajectories(wrong)
    assert guard.score_trajectories([]) == []
    many = Guard.load(trajectory_bundle()[1], threads=1, max_tokens_per_text=20)
    with pytest.raises(InputError, match="at most 20 are taken"):
        many.score_trajectory(**WHOLE)


FAULTS = {
    "task": (lambda m: m.update(task="content"), "the task is 'content', and there are trajectory"),
    "no-rules": (lambda m: m.pop("trajectory"), "'trajectory', and there are no trajectory rules"),
    "cleaner": (lambda m: m["text"].update(cleaner="llm-siren-0.2"), "none and head_tail"),
    "truncation": (lambda m: m["text"].update(truncation_side="right"), "none and head_tail"),
    "template": (lambda m: m["trajectory"].update(template="other.jinja"), "lacks 'other.jinja'"),
    "template-outside": (lambda m: m["trajectory"].update(template="../a"), "lacks '../a'"),
    "no-template": (lambda m: m["trajectory"].pop("template"), "template"),
    "tools": (lambda m: m["trajectory"].update(tools="plain"), "tools"),
    "tokens": (lambda m: m["trajectory"].update(tokens={"bos_token": 1}), "tokens"),
    "another-rule": (lambda m: m["trajectory"].update(thoughts=False), "thoughts"),
    "pooling": (lambda m: m["heads"]["harm"].update(pooling="residual_mean"), "one head, logistic"),
    "activation": (lambda m: m["heads"]["harm"].update(activation="orders"), "one head, logistic"),
    "classes": (lambda m: m["heads"]["harm"].update(classes=2), "logits: float32"),
    "labels": (lambda m: m["heads"]["harm"].update(labels=["a"]), "logistic heads have no names"),
    "spans": (
        lambda m: m.update(spans=[{"tokens": 32, "threshold": 0.5}]),
        "has no spans, exits and thresholds of responses",
    ),
    "unlisted": (lambda m: m["files"].pop("chat_template.jinja"), "lacks 'chat_template.jinja'"),
    "size": (lambda m: m["files"]["chat_template.jinja"].update(size=1), "guard.json says 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bundle_that_contradicts_itself_is_refused(trajectory_bundle, tmp_path, fault):
    change, match = FAULTS[fault]
    _copied(trajectory_bundle()[1], tmp_path, change)
    with pytest.raises(BundleError, match=match):
        load_bundle(tmp_path)


def test_a_changed_template_is_refused(trajectory_bundle, tmp_path):
    _copied(trajectory_bundle()[1], tmp_path, lambda m: None)
    template = tmp_path / "chat_template.jinja"
    template.unlink()
    template.write_text(
        CHATML.replace("user", "USER").replace("message['role']", "message['rolE']")
    )
    with pytest.raises(BundleError, match="SHA-256"):
        Guard.load(tmp_path)


def _copied(bundle, folder, change):
    for path in bundle.iterdir():
        if path.is_file() and path.name != "guard.json":
            os.link(path, folder / path.name)
    manifest = msgspec.json.decode((bundle / "guard.json").read_bytes())
    change(manifest)
    (folder / "guard.json").write_bytes(msgspec.json.encode(manifest))


@pytest.mark.parametrize("blocks", [2, 4])
def test_a_gguf_files_own_template_is_used(tmp_path, backbone_folder, blocks):
    values = {"tokenizer.chat_template": TEMPLATES["no-system"]}
    file = write_gguf(tmp_path / "m.gguf", backbone_folder("llama"), values=values)
    artifact = load_artifact(
        make_trajectory_head(tmp_path / "head", backbone_folder("llama"), blocks=blocks)
    )
    checkpoint = load_checkpoint(file)
    reference = LlmSiren(artifact, checkpoint).scores
    manifest = export_bundle(artifact, checkpoint, tmp_path / "bundle", reference=reference)
    assert manifest.verification.status == "passed"
    assert set(manifest.trajectory.tokens) >= {"bos_token", "eos_token"}
    text = Guard.load(tmp_path / "bundle", threads=1).render_trajectory(WHOLE)
    assert text.startswith(manifest.trajectory.tokens["bos_token"])
    bare = load_checkpoint(write_gguf(tmp_path / "bare.gguf", backbone_folder("llama")))
    with pytest.raises(CheckpointError, match=r"the header has no tokenizer\.chat_template"):
        export_bundle(artifact, bare, tmp_path / "other")


def test_callers_share_engine_runs(trajectory_bundle):
    guard = Guard.load(trajectory_bundle()[1], threads=1, **AS_LLM_SIREN)
    given = [{**WHOLE, "messages": MESSAGES[:end]} for end in range(3, 10)]
    expected = [result.score for result in guard.score_trajectories(given)]

    async def ask():
        async with AsyncGuard(guard) as shared:
            return await asyncio.gather(*(shared.score_each_trajectory([one]) for one in given))

    found = [result.score for (result,) in asyncio.run(ask())]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    with SharedGuard(guard) as shared:
        result, refused = shared.score_each_trajectory([WHOLE, "text"])
        assert (result.truncated, result.omitted is not None) == (True, True)
        assert isinstance(refused, InputError)


def test_an_ensemble_of_trajectories_has_no_thresholds_of_spans(trajectory_bundle, tmp_path):
    _, bundle = trajectory_bundle()
    for name in ("one", "two"):
        shutil.copytree(bundle, tmp_path / name)
    ensemble = {"format_version": 1, "members": ["one", "two"]}
    (tmp_path / "ensemble.json").write_text(json.dumps(ensemble))
    assert 0 <= Guard.load(tmp_path).score_trajectory(messages=MESSAGES[:3]).score <= 1
    spans = {"spans": [{"tokens": 32, "threshold": 0.9}]}
    (tmp_path / "ensemble.json").write_text(json.dumps({**ensemble, **spans}))
    with pytest.raises(InputError, match="which have no spans"):
        Guard.load(tmp_path)
