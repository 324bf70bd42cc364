"""An export is all or nothing, repeatable, self-contained and verified."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from models import make_artifact
from siren_export import export as export_module
from siren_export.bundle_writer import write_manifest
from siren_export.commands.heads import load_heads
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify import bundle as verify_module
from siren_export.verify.reference import (
    LlmSiren,
    Reference,
    ReferenceUnavailable,
    read_reference,
    write_reference,
)
from siren_export.verify.texts import TEXTS, added_tokens, digest, own_texts
from siren_runtime import Guard
from siren_runtime.bundle.manifest import MANIFEST_FILE
from siren_runtime.errors import ArtifactError, BundleError, InputError, SirenError


@pytest.fixture
def inputs(tmp_path, backbone_folder):
    backbone = backbone_folder("qwen3")
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
    return artifact, load_checkpoint(backbone)


def reference_of(artifact, checkpoint):
    return LlmSiren(artifact, checkpoint).scores


def test_two_exports_differ_in_the_time_stamp_only(tmp_path, inputs):
    for name in ("one", "two"):
        export_bundle(*inputs, tmp_path / name, reference=reference_of(*inputs))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    graphs = ["explain.harm.onnx", "head.onnx", "score.onnx", "stream.onnx"]
    assert files == sorted(["guard.json", "tokenizer.json", "weights.bin", *graphs])
    for name in files:
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        if name == MANIFEST_FILE:
            one, two = json.loads(one), json.loads(two)
            one.pop("created")
            two.pop("created")
        assert one == two, name


def test_a_bundle_holds_the_notices_of_its_heads_each_once(tmp_path, backbone_folder):
    backbone = backbone_folder("qwen3")
    notices = {"harm": b"under terms\n", "kinds": b"of another\n", "again": b"under terms\n"}
    for name, notice in notices.items():
        (make_artifact(tmp_path / name, backbone) / "NOTICE").write_bytes(notice)
    heads = load_heads({name: str(tmp_path / name) for name in notices})
    export_bundle(heads, load_checkpoint(backbone), tmp_path / "bundle", stream=False)
    assert (tmp_path / "bundle" / "NOTICE").read_bytes() == b"under terms\n\nof another\n"
    (tmp_path / "bundle" / "NOTICE").unlink()
    with pytest.raises(BundleError, match="NOTICE"):
        Guard.load(tmp_path / "bundle")


def test_a_bundle_needs_nothing_but_itself_and_can_be_moved(tmp_path, backbone_folder):
    backbone = shutil.copytree(backbone_folder("qwen3"), tmp_path / "backbone")
    head = make_artifact(tmp_path / "head", backbone)
    export_bundle(load_artifact(head), load_checkpoint(backbone), tmp_path / "bundle")
    score = Guard.load(tmp_path / "bundle").score("Hello").score
    shutil.rmtree(backbone)
    shutil.rmtree(head)
    moved = tmp_path / "elsewhere" / "guard"
    moved.parent.mkdir()
    (tmp_path / "bundle").rename(moved)
    assert Guard.load(moved, verify="full").score("Hello").score == score


def test_the_report_compares_with_llm_siren_on_every_text(tmp_path, inputs):
    manifest = export_bundle(*inputs, tmp_path / "bundle", reference=reference_of(*inputs))
    report = manifest.verification
    assert report.status == "passed"
    own = own_texts(added_tokens(inputs[1]), inputs[0].max_length)
    assert report.texts == len(TEXTS) + len(own) > 64
    assert report.max_difference <= report.bound == 1e-4
    assert report.verdict_agreement == 1.0
    assert report.reference.startswith("llm-siren 0.2.0 float32")
    assert Guard.load(tmp_path / "bundle").manifest.verification == report


def test_the_texts_run_from_one_token_to_beyond_the_limit(backbone_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbone_folder("qwen3"))
    lengths = [len(tokenizer(text).input_ids) for text in TEXTS]
    assert sorted(lengths)[1] == 1
    assert max(lengths) > 512
    assert len(set(lengths)) > 30


def shifted(reference: Reference, by: float) -> Reference:
    scores = [score + by for score in reference.scores]
    return Reference(reference.name, reference.head, reference.texts, scores)


def test_drift_beyond_the_bound_fails_unless_it_is_allowed(tmp_path, inputs):
    reference = shifted(LlmSiren(*inputs).scores(lambda *_: None), 2e-4)
    with pytest.raises(BundleError, match=r"drift.*2\.00e-04.*1e-04.*--allow-drift"):
        export_bundle(*inputs, tmp_path / "bundle", reference=lambda _: reference)
    assert not (tmp_path / "bundle").exists()
    manifest = export_bundle(
        *inputs, tmp_path / "bundle", reference=lambda _: reference, allow_drift=True
    )
    assert manifest.verification.status == "drifted"


def test_without_a_reference_the_bundle_says_that_it_is_unverified(tmp_path, inputs):
    def none(_advance):
        raise ReferenceUnavailable("llm-siren is not installed")

    manifest = export_bundle(*inputs, tmp_path / "bundle", reference=none)
    assert manifest.verification.status == "unverified"
    assert manifest.verification.reason == "llm-siren is not installed"


def test_without_onnxruntime_the_bundle_is_made_but_unverified(tmp_path, inputs, monkeypatch):
    find_spec = verify_module.find_spec
    monkeypatch.setattr(
        verify_module, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
    )
    manifest = export_bundle(*inputs, tmp_path / "bundle", reference=reference_of(*inputs))
    assert manifest.verification.status == "unverified"
    assert "pip install '.[cpu]'" in manifest.verification.reason


def test_a_guard_that_llm_siren_cannot_load_is_unverified(tmp_path, backbone_folder):
    backbone = shutil.copytree(backbone_folder("qwen3"), tmp_path / "backbone")
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
    checkpoint = load_checkpoint(backbone)
    (backbone / "config.json").unlink()
    with pytest.raises(ReferenceUnavailable, match="cannot load the guard"):
        LlmSiren(artifact, checkpoint).scores(lambda *_: None)


def test_recorded_scores_verify_only_the_head_and_texts_they_belong_to(tmp_path, inputs):
    artifact, _ = inputs
    recorded = tmp_path / "reference.json"
    write_reference(recorded, LlmSiren(*inputs).scores(lambda *_: None))
    manifest = export_bundle(
        *inputs, tmp_path / "bundle", reference=lambda _: read_reference(recorded, artifact)
    )
    assert manifest.verification.status == "passed"

    content = json.loads(recorded.read_bytes())
    for key, message in (("head", "another siren.safetensors"), ("texts", "other texts")):
        recorded.write_text(json.dumps({**content, key: "0" * 64}))
        with pytest.raises(ReferenceUnavailable, match=message):
            read_reference(recorded, artifact)
    assert content["texts"] == digest()
    recorded.write_text("{}")
    with pytest.raises(ArtifactError, match=r"reference\.json"):
        read_reference(recorded, artifact)


@pytest.mark.parametrize("stage", ["write", "reference", "verify"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_export_that_fails_on_its_way_leaves_nothing_and_the_next_one_succeeds(
    tmp_path, inputs, stage, error
):
    def fail(reached, done, total):
        if reached == stage and done >= total / 2:
            raise error

    output = tmp_path / "out" / "bundle"
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        export_bundle(*inputs, output, reference=reference_of(*inputs), progress=fail)
    assert caught.type is (error if isinstance(error, type) else type(error))
    assert list(output.parent.iterdir()) == []
    export_bundle(*inputs, output, reference=reference_of(*inputs))
    assert Guard.load(output, verify="full").score("Hello").score > 0


_KILLED = """
import os, signal, sys
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.export import export_bundle
from siren_export.verify.reference import LlmSiren
from pathlib import Path

head, backbone, output, stage = sys.argv[1:]
artifact, checkpoint = load_artifact(head), load_checkpoint(backbone)

def kill(reached, done, total):
    if reached == stage:
        os.kill(os.getpid(), signal.SIGKILL)

export_bundle(
    artifact, checkpoint, Path(output), reference=LlmSiren(artifact, checkpoint).scores,
    progress=kill,
)
"""


@pytest.mark.parametrize("stage", ["write", "verify"])
def test_a_killed_export_leaves_nothing_that_loads_and_the_next_one_cleans_up(
    tmp_path, backbone_folder, stage
):
    backbone = backbone_folder("qwen3")
    head = make_artifact(tmp_path / "head", backbone)
    output = tmp_path / "out" / "bundle"
    command = [sys.executable, "-c", _KILLED, str(head), str(backbone), str(output), stage]
    killed = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = output.parent.iterdir()
    with pytest.raises(SirenError):
        Guard.load(leftover)
    assert not output.exists()

    export_bundle(load_artifact(head), load_checkpoint(backbone), output)
    assert list(output.parent.iterdir()) == [output]
    assert Guard.load(output).score("Hello").score > 0


def test_what_is_at_the_output_is_not_lost(tmp_path, inputs):
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        export_bundle(*inputs, output, overwrite=True)
    assert (output / "thesis.txt").read_text() == "years of work"

    (output / "thesis.txt").unlink()
    first = export_bundle(*inputs, output)
    with pytest.raises(BundleError, match="--overwrite"):
        export_bundle(*inputs, output)
    time.sleep(1.1)
    second = export_bundle(*inputs, output, overwrite=True)
    assert second.created > first.created
    assert Guard.load(output).manifest == second
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_failing_replacement_keeps_the_old_bundle(tmp_path, inputs, monkeypatch):
    output = tmp_path / "bundle"
    first = export_bundle(*inputs, output)
    full = OSError(errno.ENOSPC, "disk full")
    monkeypatch.setattr(export_module, "write_manifest", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(BundleError, match=r"bundle: the bundle cannot be written: .*disk full"):
        export_bundle(*inputs, output, overwrite=True)
    assert Guard.load(output, verify="full").manifest == first


def test_a_link_to_a_bundle_is_replaced_and_the_bundle_kept(tmp_path, inputs):
    first = export_bundle(*inputs, tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    second = export_bundle(*inputs, tmp_path / "link", precision="fp16", overwrite=True)
    assert Guard.load(tmp_path / "link").manifest == second
    assert Guard.load(tmp_path / "real").manifest == first
    assert not list(tmp_path.glob(".*"))


def test_a_bundle_whose_place_is_taken_meanwhile_is_put_back(tmp_path, inputs, monkeypatch):
    output = tmp_path / "bundle"
    first = export_bundle(*inputs, output)

    def forget(folder, manifest):
        write_manifest(folder, manifest)
        folder.rename(tmp_path / "taken")

    monkeypatch.setattr(export_module, "write_manifest", forget)
    with pytest.raises(BundleError, match="the bundle cannot be written"):
        export_bundle(*inputs, output, overwrite=True)
    assert Guard.load(output).manifest == first


def test_progress_counts_every_byte(tmp_path, inputs):
    seen = []
    export_bundle(
        *inputs, tmp_path / "bundle", progress=lambda stage, done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][1] <= os.path.getsize(tmp_path / "bundle" / "weights.bin")  # noqa: PTH202


def test_the_reference_is_not_started_where_it_would_not_fit(inputs, monkeypatch):
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        pytest.skip("no /proc/meminfo on this system")
    monkeypatch.setattr(Path, "read_text", lambda self: "MemAvailable:    1 kB")
    with pytest.raises(ReferenceUnavailable, match="GB of memory"):
        LlmSiren(*inputs).scores(lambda *_: None)


def test_the_texts_hold_each_added_token_and_are_longer_than_the_limit(inputs):
    artifact, checkpoint = inputs
    tokens = added_tokens(checkpoint)
    *with_tokens, longest = own_texts([*tokens, "<new>"], artifact.max_length)
    assert all(any(token in text for text in with_tokens) for token in [*tokens, "<new>"])
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
    assert len(tokenizer.encode(longest).ids) > artifact.max_length


def test_tokens_beyond_the_embedding_are_told_and_refused(
    tmp_path, inputs, backbone_folder, caplog
):
    artifact, checkpoint = inputs
    backbone = shutil.copytree(backbone_folder("qwen3"), tmp_path / "backbone")
    rows = json.loads((backbone / "config.json").read_text())["vocab_size"]
    tokenizer = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == rows
    tokenizer.add_tokens([f"<new_{n}>" for n in range(9)])
    tokenizer.save(str(backbone / "tokenizer.json"))
    more = load_checkpoint(backbone)
    told = f"without one: 9; a text that holds one is refused: '<new_0>' ({rows}), "
    for reference in (None, reference_of(artifact, more)):
        caplog.clear()
        manifest = export_bundle(
            artifact, more, tmp_path / "bundle", reference=reference, overwrite=True
        )
        assert manifest.backbone.vocab_size == rows
        assert told in manifest.verification.reason
        assert told in caplog.text
    assert manifest.verification.status == "passed"
    with pytest.raises(InputError, match=f"token {rows}, '<new_"):
        Guard.load(tmp_path / "bundle").score(f"is <new_{rows - 384}> it")
    with pytest.raises(InputError, match=f"token {rows}, '<new_"):
        export_bundle(artifact, more, tmp_path / "x", precision="int8", calibration=["<new_0> it"])
    plain = export_bundle(artifact, checkpoint, tmp_path / "plain")
    assert plain.verification.reason == "not asked for"


def test_of_long_runs_of_placeholders_a_few_are_scored_and_all_else_stays():
    runs = [f"<unused{n}>" for n in range(6242)]
    few = [f"<extra_{n}>" for n in range(16)]
    *with_tokens, _ = own_texts(["<bos>", *runs, *few, "<eos>"], 48)
    assert len(with_tokens) <= 4
    text = " ".join(with_tokens)
    assert all(token in text for token in ["<bos>", *runs[:4], *runs[-4:], *few, "<eos>"])
