"""A loaded guard does not depend on its files; what it loads is what guard.json says."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from changed_files import CHANGE_FILES, CHANGES, run_script
from siren_runtime import Guard
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.errors import BackendError, BundleError
from tiny_bundle import edit_model, make_bundle, make_model, make_tokenizer, save_model, seal

FILES = ("score.onnx", "weights.bin", "tokenizer.json", "guard.json")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1234\n" % (
    b"0" * 64
)

# In a process of its own, for it may end by a signal. The weights are megabytes, so that their
# pages are not all in memory by chance.
_SCORES_WHILE = (
    CHANGE_FILES
    + """
guard = Guard.load(folder, threads=1)
texts = ["hello", "a longer text, of other bytes: 0123456789", "\\u00e9\\u00e8 caf\\u00e9"]
expected = [result.score for result in guard.score_batch(texts)]
stop, wrong, rounds = threading.Event(), [], []

def score():
    while not stop.is_set():
        found = [result.score for result in guard.score_batch(texts)]
        rounds.append(1)
        if found != expected:
            wrong.append(found)

threads = [threading.Thread(target=score) for _ in range(8)]
for thread in threads:
    thread.start()
for _ in range(3):
    for _ in change_files():
        pass
    done = len(rounds)
    while len(rounds) < done + 50:
        time.sleep(0.001)
stop.set()
for thread in threads:
    thread.join()
print(json.dumps({"wrong": wrong[:3], "rounds": len(rounds)}))
"""
)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A bundle of 8 MB of weights."""
    folder = tmp_path / "large"
    folder.mkdir()
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(1)
    embedding = rng.normal(0, 1, (350_000, 6)).astype(np.float32)
    embedding[:, 0] += 1
    save_model(make_model(embedding, rng.normal(0, 1, (6, 2)).astype(np.float32)), folder)
    seal(folder)
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_scores_stay_the_same_while_every_file_is_changed(change: str, large: Path) -> None:
    answer = run_script(_SCORES_WHILE, large, change)
    assert answer["wrong"] == []
    assert answer["rounds"] > 100


def test_no_file_of_the_bundle_stays_mapped_or_open(large: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("/proc/self/maps is Linux's")
    guard = Guard.load(large)
    opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert str(large) not in maps.read_text()
    assert not any(path.startswith(str(large)) for path in opened)
    assert guard.score("hello").score > 0


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_one_changed_byte_is_refused_by_default(
    name: str, position: float, own_bundle: Path
) -> None:
    data = bytearray((own_bundle / name).read_bytes())
    data[min(int(position * len(data)), len(data) - 1)] ^= 1
    (own_bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: SHA-256|{name}: not an ONNX model|listed"):
        Guard.load(own_bundle)


def test_zeros_in_the_weights_are_refused_and_named(large: Path) -> None:
    with (large / "weights.bin").open("r+b") as file:
        file.seek(1 << 20)
        file.write(bytes(1 << 20))
    with pytest.raises(BundleError, match=r"weights\.bin: SHA-256 .*damaged or was tampered with"):
        Guard.load(large)


def test_sizes_alone_are_checked_where_that_is_asked_for(own_bundle: Path) -> None:
    _change_last_byte(own_bundle / "weights.bin")
    assert 0 <= Guard.load(own_bundle, verify="size").score("hello").score <= 1


def test_what_is_hashed_is_what_the_engine_gets(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is exchanged after each time that it was read: no second reading may count."""
    other = make_bundle(tmp_path / "other", scale=0.5) / "weights.bin"
    expected = Guard.load(own_bundle).score("hello").score
    session = onnxruntime.InferenceSession

    def exchange_first(*arguments: object, **settings: object) -> object:
        shutil.copyfile(other, own_bundle / "weights.bin")
        return session(*arguments, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", exchange_first)
    assert Guard.load(own_bundle).score("hello").score == expected
    with pytest.raises(BundleError, match="SHA-256"):
        Guard.load(own_bundle)


def test_damaged_weights_are_named_even_if_the_engine_fails_on_them(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> object:
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("no such weights")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(BackendError, match="no such weights"):
        Guard.load(own_bundle)
    _change_last_byte(own_bundle / "weights.bin")
    with pytest.raises(BundleError, match=r"weights\.bin: SHA-256"):
        Guard.load(own_bundle)


@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_weights_of_the_working_directory_are_never_taken(
    place: str, own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime looks there for weights of a graph that it has as bytes."""
    expected = Guard.load(own_bundle).score("hello").score
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes((own_bundle / "weights.bin").stat().st_size))
    if place == "attribute":
        edit_model(own_bundle, _move_into_a_constant)
    assert Guard.load(own_bundle).score("hello").score == expected


def test_options_of_the_caller_serve_several_guards_and_stay_as_they_are(bundle: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    scores = {Guard.load(bundle, session_options=options).score("hello").score for _ in range(3)}
    assert scores == {Guard.load(bundle).score("hello").score}
    assert options.intra_op_num_threads == 1
    with pytest.raises(RuntimeError, match="x64quantprecision"):
        options.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize("name", FILES)
def test_a_pointer_of_git_lfs_is_named(name: str, own_bundle: Path) -> None:
    (own_bundle / name).write_bytes(LFS_POINTER)
    with pytest.raises(BundleError, match=rf"{name}: .*git LFS.*`git lfs pull`"):
        Guard.load(own_bundle)


def test_every_file_is_hashed_at_once_where_that_is_asked_for(own_bundle: Path) -> None:
    _change_last_byte(own_bundle / "weights.bin")
    assert load_bundle(own_bundle).manifest
    with pytest.raises(BundleError, match=r"weights\.bin: SHA-256"):
        load_bundle(own_bundle, verify="full")


def _move_into_a_constant(model: onnx.ModelProto) -> None:
    """Make an initializer with external data the attribute of a node."""
    graph = model.graph
    tensor = next(tensor for tensor in graph.initializer if tensor.external_data)
    nodes = [onnx.helper.make_node("Constant", [], [tensor.name], value=tensor), *graph.node]
    graph.initializer.remove(tensor)
    del graph.node[:]
    graph.node.extend(nodes)


def _change_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256(data).digest()
