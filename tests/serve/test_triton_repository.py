"""What `siren triton` writes. In a real tritonserver it is tried by test_triton_server.py."""

import re
from pathlib import Path

import onnxruntime
import pytest
from typer.testing import CliRunner

from saved_plans import save
from siren_runtime import BackendError, BundleError, Guard, InputError, SirenError
from siren_runtime.bundle.reader import load_bundle
from siren_serve.commands.triton import app
from tiny_bundle import make_bundle


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """A bundle that plans may be added to."""
    return make_bundle(tmp_path / "bundle")


def write(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.stderr
    return (
        Path(str(arguments[2])) / done.stderr.split("/")[-1].strip() / "config.pbtxt"
    ).read_text()


def test_a_model_of_texts_holds_the_whole_bundle(
    bundle: Path, guard: Guard, tmp_path: Path
) -> None:
    config = write(bundle, "-o", tmp_path / "models", "--threads", 2, "--max-queue", 9)
    folder = tmp_path / "models" / "guard"
    copied = Guard.load(folder / "1" / "bundle", verify="full", threads=1)
    assert copied.score("a text").score == guard.score("a text").score
    assert "siren_serve.triton.text_model" in (folder / "1" / "model.py").read_text()
    assert 'backend: "python"' in config
    assert "max_queue_size: 9" in config
    assert re.search(r'key: "threads" value: \{ string_value: "2" \}', config)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["guard"]


def test_a_model_of_tokens_has_the_graphs_tensors(bundle: Path, tmp_path: Path) -> None:
    config = write(bundle, "-o", tmp_path, "--name", "small", "--forms", "tokens")
    session = onnxruntime.InferenceSession(tmp_path / "small_tokens" / "1" / "model.onnx")
    named = re.findall(r'\{ name: "(\w+)" data_type: TYPE_(\w+) dims: (.*) \}', config)
    graph = [*session.get_inputs(), *session.get_outputs()]
    types = {"tensor(int64)": "INT64", "tensor(float)": "FP32"}
    assert [(name, kind) for name, kind, _ in named] == [(t.name, types[t.type]) for t in graph]
    dims = {name: shape for name, _, shape in named}
    assert dims["input_ids"] == "[-1]"
    assert dims["score"] == "[1] reshape: { shape: [] }"
    assert dims["logits"] == "[2]"


def _save_plan(bundle: Path, name: str, **changes: object) -> None:
    created = f"2026-01-01T00:00:00+00:00 {name}"
    data = f"plan {name}".encode()
    save(load_bundle(bundle), name=name, data=data, **{"created": created, **changes})


def test_a_model_of_a_plan_is_the_newest_that_tensorrt_made_of_these_weights(
    own_bundle: Path, tmp_path: Path
) -> None:
    for name, changes in {
        "1": {},
        "2": {},
        "3": {"flavor": "tensorrt-rtx"},
        "4": {"sources": {"score.onnx": "0" * 64}},
        "5": {"graph": "stream"},
    }.items():
        _save_plan(own_bundle, name, **changes)
    config = write(own_bundle, "-o", tmp_path / "models", "--forms", "plan", "--instances", 2)
    tokens = write(own_bundle, "-o", tmp_path / "models", "--forms", "tokens")
    assert (tmp_path / "models" / "guard_plan" / "1" / "model.plan").read_bytes() == b"plan 2"
    assert 'platform: "tensorrt_plan"' in config
    assert 'instance_group [{ count: 2 kind: KIND_GPU profile: ["1"] }]' in config
    assert "max_batch_size: 32" in config
    tensor = re.compile(r"\{ name: .* \}")
    assert tensor.findall(config)[:5] == tensor.findall(tokens)[:5]


def test_profiles_of_a_plan_hold_the_largest_batch(own_bundle: Path, tmp_path: Path) -> None:
    _save_plan(own_bundle, "1")
    config = write(own_bundle, "-o", tmp_path / "models", "--forms", "plan", "--max-batch", 1)
    assert "max_batch_size: 1\n" in config
    assert 'profile: ["0", "1"]' in config


def test_without_a_plan_of_tensorrt_it_says_how_to_make_one(
    own_bundle: Path, tmp_path: Path
) -> None:
    _save_plan(own_bundle, "1", flavor="tensorrt-rtx")
    with pytest.raises(InputError, match=r"siren build .* --flavor tensorrt"):
        write(own_bundle, "-o", tmp_path / "models", "--forms", "plan")
    assert not (tmp_path / "models").exists()


def test_a_plan_that_was_changed_makes_no_model(own_bundle: Path, tmp_path: Path) -> None:
    _save_plan(own_bundle, "1", sha256="0" * 64)
    with pytest.raises(BackendError, match="was changed"):
        write(own_bundle, "-o", tmp_path / "models", "--forms", "plan")
    assert not (tmp_path / "models" / "guard_plan").exists()


def test_a_plan_takes_no_threads_of_a_cpu(own_bundle: Path, tmp_path: Path) -> None:
    given = [str(own_bundle), "-o", str(tmp_path), "--forms", "plan", "--threads", "2"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2
    assert "--threads goes with" in " ".join(done.stderr.split())


def test_streams_are_sequences_with_a_response_a_piece(bundle: Path, tmp_path: Path) -> None:
    config = write(bundle, "-o", tmp_path, "--forms", "stream", "--max-batch", 3, "--timeout", 2)
    assert "decoupled: true" in config
    assert "max_candidate_sequences: 3" in config
    assert "max_sequence_idle_microseconds: 2000000" in config


def test_a_model_that_is_there_is_not_written_over(bundle: Path, tmp_path: Path) -> None:
    write(bundle, "-o", tmp_path)
    with pytest.raises(InputError, match="guard is there already"):
        write(bundle, "-o", tmp_path)
    write(bundle, "-o", tmp_path, "--name", "other")


@pytest.mark.parametrize("name", ["", "../guard", "a/b", ".hidden", 'a"b'])
def test_a_name_that_is_no_models_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="--name"):
        write(bundle, "-o", tmp_path, "--name", name)


def test_a_bundle_is_named_as_for_other_commands(tmp_path: Path) -> None:
    with pytest.raises(SirenError, match="neither a folder that is there nor the id"):
        write("nowhere", "-o", tmp_path)


def test_a_form_that_is_not_known_is_refused(bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(bundle), "-o", str(tmp_path), "--forms", "text,voice"])
    assert done.exit_code == 2
    assert "'voice' is not one of text, stream, tokens, plan" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_damaged_bundle_makes_no_model(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        write(tmp_path, "-o", tmp_path / "models")
    assert not (tmp_path / "models").exists()
