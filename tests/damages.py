"""Ways in which a bundle can be damaged or hostile."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from tiny_bundle import edit_manifest, edit_model, make_bundle, seal

DAMAGES: dict[str, Callable[[Path], Any]] = {}
"""Found by every load."""

HIDDEN_DAMAGES: dict[str, Callable[[Path], Any]] = {}
"""Of the right size, so only hashes or scoring show them."""


def damage(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    DAMAGES[function.__name__.replace("_", " ")] = function
    return function


def hidden_damage(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    HIDDEN_DAMAGES[function.__name__.replace("_", " ")] = function
    return function


def _outside(folder: Path, name: str) -> Path:
    """Move a file of the bundle out of it and return where it is."""
    return Path(shutil.move(folder / name, folder.parent / f"outside-{name}"))


def _relocate(folder: Path, location: str) -> None:
    """Make every external tensor of the graph point at `location`."""

    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location

    edit_model(folder, edit)


def list_file(folder: Path, name: str) -> None:
    """Add a file to the manifest."""
    spec = {"size": 0, "sha256": "0" * 64}
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: spec}))


def _change(folder: Path, *keys: str, to: Any) -> None:
    def edit(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = to

    edit_manifest(folder, edit)


# --- the manifest


@damage
def no_manifest(folder: Path) -> None:
    (folder / "guard.json").unlink()


@damage
def empty_manifest(folder: Path) -> None:
    (folder / "guard.json").write_bytes(b"")


@damage
def manifest_cut_short(folder: Path) -> None:
    data = (folder / "guard.json").read_bytes()
    (folder / "guard.json").write_bytes(data[: len(data) // 2])


@damage
def manifest_not_utf8(folder: Path) -> None:
    data = (folder / "guard.json").read_bytes()
    (folder / "guard.json").write_bytes(data.replace(b"bag-of-bytes", b"bag-\xff\xfe"))


@damage
def manifest_of_hundreds_of_megabytes(folder: Path) -> None:
    os.truncate(folder / "guard.json", 300 << 20)


@damage
def manifest_is_a_folder(folder: Path) -> None:
    (folder / "guard.json").unlink()
    (folder / "guard.json").mkdir()


@damage
def manifest_is_a_pipe(folder: Path) -> None:
    (folder / "guard.json").unlink()
    os.mkfifo(folder / "guard.json")


@damage
def manifest_is_a_link_out(folder: Path) -> None:
    (folder / "guard.json").symlink_to(_outside(folder, "guard.json"))


@damage
def future_format(folder: Path) -> None:
    _change(folder, "format_version", to=3)


@damage
def old_format(folder: Path) -> None:
    _change(folder, "format_version", to=0)


@damage
def unknown_field(folder: Path) -> None:
    _change(folder, "text", "lowercase", to=True)


@damage
def no_score_graph(folder: Path) -> None:
    _change(folder, "graphs", to={})


@damage
def parent_path_in_files(folder: Path) -> None:
    list_file(folder, "../outside")


@damage
def absolute_path_in_files(folder: Path) -> None:
    list_file(folder, "/etc/passwd")


@damage
def path_in_files_longer_than_any_file_system_takes(folder: Path) -> None:
    list_file(folder, "x" * 5_000)


@damage
def file_listed_that_is_not_there(folder: Path) -> None:
    list_file(folder, "plans/engine.plan")


@damage
def folder_listed_as_a_file(folder: Path) -> None:
    (folder / "plans").mkdir()
    list_file(folder, "plans")


@damage
def manifest_of_another_graph(folder: Path) -> None:
    def edit(manifest: Any) -> None:
        manifest["heads"]["harm"]["features"] = 7
        manifest["graphs"]["score"]["outputs"][2]["shape"][1] = 7

    edit_manifest(folder, edit)


@damage
def token_limit_of_zero(folder: Path) -> None:
    _change(folder, "text", "max_length", to=0)


@damage
def token_limit_without_room_for_text(folder: Path) -> None:
    _change(folder, "text", "max_length", to=1)


# --- the files


@damage
def missing_weights(folder: Path) -> None:
    (folder / "weights.bin").unlink()


@damage
def missing_graph(folder: Path) -> None:
    (folder / "score.onnx").unlink()


@damage
def missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@damage
def truncated_weights(folder: Path) -> None:
    os.truncate(folder / "weights.bin", 1_000)


@damage
def truncated_weights_and_a_manifest_that_agrees(folder: Path) -> None:
    os.truncate(folder / "weights.bin", 1_000)
    seal(folder)


@damage
def weights_with_a_byte_more(folder: Path) -> None:
    with (folder / "weights.bin").open("ab") as file:
        file.write(b"\0")


@damage
def manifest_that_lies_on_a_size(folder: Path) -> None:
    _change(folder, "files", "weights.bin", "size", to=1 << 62)


@damage
def weights_are_a_link_out(folder: Path) -> None:
    (folder / "weights.bin").symlink_to(_outside(folder, "weights.bin"))


@damage
def weights_are_a_link_inside(folder: Path) -> None:
    (folder / "weights.bin").rename(folder / "real.bin")
    (folder / "weights.bin").symlink_to("real.bin")


@damage
def weights_are_a_link_to_themselves(folder: Path) -> None:
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to("weights.bin")


@damage
def weights_in_a_linked_folder(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "x.bin").touch()
    (folder / "data").symlink_to(folder.parent / "elsewhere")
    list_file(folder, "data/x.bin")


@damage
def graph_is_a_pipe(folder: Path) -> None:
    (folder / "score.onnx").unlink()
    os.mkfifo(folder / "score.onnx")


@damage
def tokenizer_is_garbage(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b"\x80garbage")
    seal(folder)


@damage
def tokenizer_is_other_json(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b'{"model": {"type": "Oracle"}}')
    seal(folder)


# --- the graph


@damage
def graph_is_garbage(folder: Path) -> None:
    (folder / "score.onnx").write_bytes(os.urandom(64) + b"\xff" * 64)
    seal(folder)


@damage
def graph_is_empty(folder: Path) -> None:
    (folder / "score.onnx").write_bytes(b"")
    seal(folder)


@damage
def graph_cut_short(folder: Path) -> None:
    data = (folder / "score.onnx").read_bytes()
    (folder / "score.onnx").write_bytes(data[: len(data) // 2])
    seal(folder)


@damage
def graph_of_gigabytes(folder: Path) -> None:
    os.truncate(folder / "score.onnx", 3 << 30)
    _change(folder, "files", "score.onnx", "size", to=3 << 30)


@damage
def external_data_in_a_parent_folder(folder: Path) -> None:
    _outside(folder, "weights.bin")
    shutil.copy(folder.parent / "outside-weights.bin", folder / "weights.bin")
    _relocate(folder, "../outside-weights.bin")


@damage
def external_data_at_an_absolute_path(folder: Path) -> None:
    _relocate(folder, str(folder.resolve() / "weights.bin"))


@damage
def external_data_in_a_file_not_listed(folder: Path) -> None:
    shutil.copy(folder / "weights.bin", folder / "more.bin")
    _relocate(folder, "more.bin")


@damage
def external_data_by_a_roundabout_path(folder: Path) -> None:
    _relocate(folder, "./weights.bin")


@damage
def external_data_hidden_in_a_subgraph(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        tensor = TensorProto(name="t", dims=[1], data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")
        body = onnx.GraphProto(name="body", initializer=[tensor])
        model.graph.node.append(helper.make_node("If", ["c"], [], then_branch=body))

    edit_model(folder, edit)


@damage
def external_data_beyond_the_end_of_its_file(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "offset":
                    entry.value = str(1 << 40)

    edit_model(folder, edit)


@damage
def graph_with_other_inputs(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT32

    edit_model(folder, edit)


@damage
def graph_with_an_input_more(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        shape = ["batch", "sequence"]
        model.graph.input.append(
            helper.make_tensor_value_info("position_ids", TensorProto.INT64, shape)
        )

    edit_model(folder, edit)


@damage
def graph_without_logits(folder: Path) -> None:
    edit_model(folder, lambda model: model.graph.output.pop(1))


@damage
def graph_with_an_unknown_operator(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "Oracle"

    edit_model(folder, edit)


@damage
def graph_of_a_future_opset(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 9_999

    edit_model(folder, edit)


# --- damage that no size shows


@hidden_damage
def a_bit_flipped_in_the_weights(folder: Path) -> None:
    data = bytearray((folder / "weights.bin").read_bytes())
    data[100] ^= 1
    (folder / "weights.bin").write_bytes(data)


@hidden_damage
def weights_of_another_bundle(folder: Path) -> None:
    other = make_bundle(folder.parent / "other", scale=0.5)
    shutil.copy(other / "weights.bin", folder / "weights.bin")


@hidden_damage
def a_hash_that_was_edited(folder: Path) -> None:
    _change(folder, "files", "tokenizer.json", "sha256", to="0" * 64)


@hidden_damage
def weights_that_are_not_numbers_and_a_manifest_that_agrees(folder: Path) -> None:
    shutil.rmtree(folder)
    make_bundle(folder, fill=float("nan"))
