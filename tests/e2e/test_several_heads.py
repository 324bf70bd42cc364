"""Several heads on one pass: each gives what it gives alone, and what plain PyTorch makes of it."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from guards import load_guard
from models import LABELS, make_artifact, make_labels
from reference import plain_logits
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import head_set, together
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.reference import LlmSiren
from siren_runtime import BackendError, BundleError, Guard, SirenError
from siren_runtime.bundle.manifest import MANIFEST_FILE
from siren_runtime.errors import ArtifactError
from siren_runtime.text.rules import clean
from streaming import cut
from texts import TEXTS
from tiny_bundle import edit_manifest

BOUND = 1e-5
SAMPLE = [text for text in TEXTS if text and clean(text) == text][:12]


@pytest.fixture(scope="module")
def made(tmp_path_factory, backbone_folder):
    """A function: backbone, precision -> folders of three heads, and of the bundle of all."""
    cases = {}

    def make(name, precision="fp32", **options):
        key = name, precision, *options.items()
        if key not in cases:
            folder, backbone = tmp_path_factory.mktemp("several"), backbone_folder(name)
            heads = {
                "harm": make_artifact(folder / "harm", backbone, layers=[0, 2]),
                "jailbreak": make_artifact(
                    folder / "jailbreak", backbone, layers=[1, 2, 3], seed=3, threshold=0.4
                ),
                "kinds": make_labels(folder / "kinds", backbone, layers=[0, 1]),
            }
            artifact = together({n: load_artifact(path) for n, path in heads.items()})
            export_bundle(
                artifact,
                load_checkpoint(backbone),
                folder / "bundle",
                precision=precision,
                allow_drift=True,
                **options,
            )
            cases[key] = heads, folder / "bundle", backbone
        return cases[key]

    return make


@pytest.mark.parametrize("name", ["qwen3", "bert", "gemma3"])
def test_every_head_agrees_with_plain_pytorch(made, name):
    heads, bundle, backbone = made(name)
    guard = load_guard(bundle, threads=1)
    assert guard.heads == ("harm", "jailbreak", "kinds")
    for text, result in zip(SAMPLE, guard.score_batch(SAMPLE), strict=True):
        for head in ("harm", "jailbreak"):
            expected = torch.softmax(plain_logits(heads[head], backbone, text), -1)[1]
            assert abs(result.heads[head].score - float(expected)) <= BOUND
        labels = torch.sigmoid(plain_logits(heads["kinds"], backbone, text))
        assert tuple(result.categories) == LABELS
        np.testing.assert_allclose([*result.categories.values()], labels, rtol=0, atol=BOUND)
        assert result.heads["kinds"].score == pytest.approx(float(labels.max()), abs=BOUND)
        assert result.flagged == tuple(n for n, p in result.categories.items() if p >= 0.5)


def test_a_head_gives_with_others_what_it_gives_alone(made, tmp_path):
    heads, bundle, backbone = made("qwen3")
    guard = load_guard(bundle, threads=1)
    for name, folder in heads.items():
        alone = tmp_path / name
        export_bundle(load_artifact(folder), load_checkpoint(backbone), alone)
        single = load_guard(alone, threads=1)
        for text in SAMPLE[:5]:
            mine, its = guard.score(text).heads[name], single.score(text)
            assert abs(mine.score - its.score) <= 1e-6
            assert (mine.is_harmful, mine.threshold) == (its.is_harmful, its.threshold)
            assert mine.categories == pytest.approx(its.categories, abs=1e-6)
    first = guard.score(SAMPLE[0], features=True)
    assert first.features.shape == (guard.manifest.head.features,)


def test_the_backbone_is_held_once_and_only_what_is_read_is_pooled(made):
    heads, bundle, _ = made("qwen3")
    artifact = together({n: load_artifact(path) for n, path in heads.items()})
    together_read = head_set(artifact).taps.channels
    for folder in heads.values():
        for block, channels in load_artifact(folder).head.taps.channels.items():
            assert set(channels.tolist()) <= set(together_read[block].tolist())
    manifest = Guard.load(bundle).manifest
    assert manifest.pooled == sum(channels.size for channels in together_read.values())
    assert manifest.backbone.blocks_kept == 4
    assert sum(head.features for head in manifest.heads.values()) > manifest.pooled


@pytest.mark.parametrize("aggregation", ["mean", "window"])
def test_a_stream_carries_all_heads_and_equals_the_whole_text(made, aggregation):
    _, bundle, _ = made("qwen3")
    guard, rng = load_guard(bundle, threads=1), np.random.default_rng(0)
    text = " ".join(SAMPLE)[:60]
    with guard.stream(aggregation=aggregation, span=10_000) as stream:
        for piece in cut(text, rng):
            result = stream.feed(piece)
    whole = load_guard(bundle, threads=1).score(text, long_text="truncate")
    if whole.truncated:
        pytest.fail("the text is meant to fit")
    assert set(result.heads) == set(whole.heads)
    for name, head in whole.heads.items():
        assert abs(result.heads[name].score - head.score) <= BOUND
        assert result.heads[name].categories == pytest.approx(head.categories, abs=BOUND)
        assert result.heads[name].is_harmful == head.is_harmful
    assert result.categories == pytest.approx(whole.categories, abs=BOUND)
    assert json.loads(json.dumps(result.to_dict()))["heads"]["kinds"]["categories"]


def test_an_encoder_streams_all_heads_by_reading_anew(made):
    _, bundle, _ = made("bert")
    guard = load_guard(bundle, threads=1)
    with pytest.warns(UserWarning, match="re-encodes"):
        stream = guard.stream()
    with stream:
        stream.feed(SAMPLE[0][:5])
        result = stream.feed(SAMPLE[0][5:])
    whole = guard.score(SAMPLE[0])
    for name, head in whole.heads.items():
        assert abs(result.heads[name].score - head.score) <= BOUND


def test_labels_that_decide_by_spans_each_say_which_are_read(made, tmp_path):
    """A label that is quieter than another in every span may reach its own threshold."""
    own = shutil.copytree(made("bert")[1], tmp_path / "bundle")
    by_spans = {"spans": [{"tokens": 8, "threshold": 0.5}]}
    edit_manifest(own, lambda manifest: manifest["decisions"]["kinds"].update(by_spans))
    plain, labelled = (load_guard(b).scorers[0].readout for b in (made("bert")[1], own))
    harm, _, kinds = plain.columns.values()
    assert plain.promising_columns == [harm.score]
    labels = range(kinds.rest.start, kinds.rest.stop)
    assert labelled.promising_columns == [harm.score, *labels]
    assert len(labels) == len(LABELS)


def test_windows_and_spans_are_the_highest_of_each_head(made):
    _, bundle, _ = made("qwen3")
    guard = Guard.load(bundle, threads=1, max_unknown=1.0)
    text = ". ".join(SAMPLE) + "."
    result = guard.score(text, spans=[8])
    assert result.span is not None
    windows = guard.score_batch([text[slice(*head.span)] for head in result.heads.values()])
    for (name, head), window in zip(result.heads.items(), windows, strict=True):
        assert abs(window.heads[name].score - head.score) < 0.1  # its ends may be cut otherwise
        assert head.spans[0].tokens == 8
        assert head.is_harmful == (head.risk >= head.threshold)
    parts = {name: head.span for name, head in result.heads.items()}
    assert len(set(parts.values())) > 1  # heads look at different parts


def test_what_is_written_as_json_has_heads_only_where_there_are_several(made, tmp_path):
    heads, bundle, backbone = made("qwen3")
    row = load_guard(bundle, threads=1).score(SAMPLE[0]).to_dict()
    assert [*row["heads"]] == ["harm", "jailbreak", "kinds"]
    assert row["heads"]["harm"]["score"] == row["score"]
    assert row["categories"] == row["heads"]["kinds"]["categories"]
    json.dumps(row, allow_nan=False)
    export_bundle(load_artifact(heads["harm"]), load_checkpoint(backbone), tmp_path / "one")
    one = load_guard(tmp_path / "one", threads=1).score(SAMPLE[0]).to_dict()
    assert not {"heads", "categories", "flagged", "risk"} & set(one)


def test_inspect_shows_how_each_further_head_decides(made, tmp_path):
    bundle = shutil.copytree(made("qwen3")[1], tmp_path / "bundle")
    responses = {"threshold": 0.7, "tiers": [{"name": "block", "threshold": 0.8}]}
    tiers = [{"name": "block", "threshold": 0.9}]

    def edit(manifest):
        decides = {"tiers": tiers, "responses": responses, "smoothing": 4}
        manifest["decisions"]["jailbreak"].update(decides)

    edit_manifest(bundle, edit)
    shown = " ".join(siren("inspect", bundle).stdout.split())
    assert "block from 0.9, scores of streams averaged over 4 tokens" in shown
    assert "responses of jailbreak from 0.7, block from 0.8" in shown
    assert "responses of kinds" not in shown


def test_verification_covers_every_head(made, tmp_path):
    heads, _, backbone = made("qwen3")
    artifact = together({n: load_artifact(path) for n, path in heads.items()})
    checkpoint = load_checkpoint(backbone)
    source = LlmSiren(artifact, checkpoint).scores
    manifest = export_bundle(artifact, checkpoint, tmp_path / "bundle", reference=source)
    report = manifest.verification
    assert report.status == "passed"
    assert set(report.further) == {"jailbreak", "kinds"}
    assert max(head.max_difference for head in report.further.values()) <= 1e-4

    path = tmp_path / "wrong" / "siren.safetensors"
    make_artifact(path.parent, backbone, layers=[1, 2, 3], seed=4, threshold=0.4)
    wrong = together({"harm": artifact, "jailbreak": load_artifact(path.parent)})
    with pytest.raises(BundleError, match="scores of the head 'jailbreak' drift"):
        export_bundle(
            wrong, checkpoint, tmp_path / "other", reference=LlmSiren(artifact, checkpoint).scores
        )


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_precision_carries_all_heads(made, precision):
    heads, bundle, _ = made("qwen3", precision)
    exact = load_guard(made("qwen3")[1], threads=1)
    guard = load_guard(bundle, threads=1)
    differences = [
        abs(a.score - b.score)
        for mine, its in zip(guard.score_batch(SAMPLE), exact.score_batch(SAMPLE), strict=True)
        for a, b in zip(mine.heads.values(), its.heads.values(), strict=True)
    ]
    assert np.mean(differences) < 0.1
    assert set(heads) == set(guard.heads)


def test_an_ensemble_takes_the_mean_of_each_head(made, tmp_path):
    _, first, backbone = made("qwen3")
    _, second, _ = made("bert")
    guard = load_guard([first, second], threads=1)
    members = [load_guard(bundle, threads=1) for bundle in (first, second)]
    result, own = guard.score(SAMPLE[1]), [member.score(SAMPLE[1]) for member in members]
    for name in guard.heads:
        expected = np.mean([one.heads[name].score for one in own])
        if name == "kinds":  # of labels the likeliest by all members, which each may not have
            expected = max(result.heads[name].categories.values())
        assert result.heads[name].score == pytest.approx(expected, abs=1e-9)
    for label in LABELS:
        expected = np.mean([one.categories[label] for one in own])
        assert result.categories[label] == pytest.approx(expected, abs=1e-9)
    single = make_artifact(tmp_path / "head", backbone)
    export_bundle(load_artifact(single), load_checkpoint(backbone), tmp_path / "single")
    with pytest.raises(BundleError, match="must have the same heads"):
        load_guard([first, tmp_path / "single"])


def test_a_head_whose_score_is_not_finite_is_an_error_and_not_a_verdict(made, tmp_path):
    heads, _, backbone = made("qwen3")
    folder = make_artifact(tmp_path / "huge", backbone, layers=[1])
    tensors = load_file(folder / "siren.safetensors")
    save_file({n: np.full_like(v, 3e38) for n, v in tensors.items()}, folder / "siren.safetensors")
    artifact = together({"harm": load_artifact(heads["harm"]), "huge": load_artifact(folder)})
    export_bundle(artifact, load_checkpoint(backbone), tmp_path / "bundle")
    guard = load_guard(tmp_path / "bundle", threads=1)
    with pytest.raises(BackendError, match="further head 1 is not finite"):
        guard.score("hello there")
    with pytest.raises(BackendError, match="not finite"), guard.stream() as stream:
        stream.feed("hello there")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_length": 32}, "has a max_length of 32, but 'harm' of .* 48"),
        ({"pooling": "mlp_mean"}, "pools mlp_mean, but 'harm' of .* residual_mean"),
    ],
)
def test_heads_that_do_not_read_one_pass_are_refused(made, tmp_path, options, match):
    heads, _, backbone = made("qwen3")
    other = load_artifact(make_artifact(tmp_path / "other", backbone, **options))
    with pytest.raises(ArtifactError, match=match):
        together({"harm": load_artifact(heads["harm"]), "other": other})


def change(*path, to=None, drop=False):
    def edit(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        if drop:
            del manifest[path[-1]]
        else:
            manifest[path[-1]] = to

    return edit


THIRTEEN = {
    key: []
    for key in (
        *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit"),
        *("illicit/violent", "self-harm", "self-harm/intent", "self-harm/instructions"),
        *("sexual", "sexual/minors", "violence", "violence/graphic"),
    )
}
KINDS = ("heads", "kinds")


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (change("decisions", "kinds", drop=True), "expected one of each further head"),
        (change("decisions", "other", to={"threshold": 0.5}), "expected one of each further"),
        (change("decisions", "kinds", "threshold", to=2), "decisions"),
        (change("decisions", "kinds", "temperature", to=2.0), "a temperature for each of them"),
        (
            change("decisions", "kinds", "labels", to=[{"name": "hate", "threshold": 0.5}]),
            "labels that head 'kinds' decides on",
        ),
        (
            change("decisions", "jailbreak", "labels", to=[{"name": "x", "threshold": 0.5}]),
            "labels that head 'jailbreak' decides on",
        ),
        (change("neurons", to=5), "feature_sum"),
        (change("neurons", drop=True), "feature_sum"),
        (change(*KINDS, "activation", to="tanh"), "activation"),
        (change(*KINDS, "labels", to=["a", "a", "b"]), "expected 3 different names"),
        (change(*KINDS, "labels", to=[]), "expected 3 different names"),
        (change(*KINDS, "classes", to=0), "classes"),
        (change(*KINDS, "classes", to=4), "graphs.score.outputs"),
        (change(*KINDS, "pooling", to="residual_last"), "pool alike"),
        (change(*KINDS, "layers", to=[0, 9]), "below blocks_kept"),
        (change(*KINDS, "features", to=3), "graphs|neurons"),
        (change(*KINDS, "openai", to={"hate": []}), "each of OpenAI's 13 keys"),
        (change(*KINDS, "openai", to=THIRTEEN | {"hate": ["x"]}), "covers 'hate' by"),
        (lambda m: m["heads"].update({"no name": m["heads"]["kinds"]}), "heads"),
        (lambda m: m["heads"].pop("kinds"), "graphs.score.outputs|further head"),
    ],
)
def test_a_manifest_whose_heads_contradict_one_another_is_refused(made, tmp_path, edit, match):
    _, bundle, _ = made("qwen3")
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    edit_manifest(folder, edit)
    with pytest.raises(SirenError, match=match) as told:
        Guard.load(folder)
    assert MANIFEST_FILE in str(told.value)


def test_the_heads_of_streams_have_one_thread_and_leave_the_streams_theirs(made):
    """Two pools of threads on two processors wait for each other at every token."""
    _, bundle, _ = made("qwen3")
    with load_guard(bundle, threads=2, streaming=True) as guard:
        backend = guard.scorers[0].stream_backend
        threads = [
            session.get_session_options().intra_op_num_threads
            for session in (backend._session, backend._head)
        ]
    assert threads == [2, 1]
