"""A model folder of onnxruntime-genai and a head -> a folder that generates and guards itself."""

import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from siren_export.bundle_writer import check_output, scratch, staging, write_file
from siren_export.describe import names
from siren_export.guard.score import author_head_alone, author_projected_heads
from siren_export.heads.base import Artifact
from siren_export.heads.together import HeadSet, head_set
from siren_export.sources.onnx_blocks import Block, TransformerGraph
from siren_runtime.bundle.backbone import Backbone
from siren_runtime.bundle.manifest import MANIFEST_FILE, FileSpec
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.bundle.reader import sha256
from siren_runtime.errors import ArtifactError, CheckpointError, is_of_caller
from siren_runtime.generation.folder import GenaiFolder, engine_digest, read_folder
from siren_runtime.generation.manifest import (
    FORMAT_VERSION,
    HEAD_FILE,
    NEURONS_OUTPUT,
    GraftCheck,
    GraftManifest,
    Pooled,
    TrainedOn,
    encode,
)

from .rewrite import add_neurons, add_states, states_of
from .verify import Folders, check_graft

T = TypeVar("T")

MATRIX_FILE = "siren.bin"
_MADE_BY = ("siren-edge", "onnx-ir", "numpy")


def graft(
    folder: Path,
    artifact: Artifact,
    output: Path,
    *,
    pooled: Pooled = "conversation",
    foreign: bool = False,
    copy: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    progress: Progress = silent,
) -> GraftManifest:
    """Graft heads on a model folder of onnxruntime-genai; the folder itself is left as it is.

    Args:
        artifact: the head, and those that are read with it; the first decides.
        pooled: which tokens the head's score is of.
        foreign: take a head that was not trained on this folder's own features.
        copy: copy the weights, which are hard links otherwise.
        verify: generate with and without the graft and compare; this opens the model three times,
            one after the other, and needs onnxruntime-genai.
        overwrite: replace a grafted folder that is at `output`.
        progress: called as the work goes on.

    Raises:
        CheckpointError: the folder is none of onnxruntime-genai, or its graph is built otherwise
            than what is known here; the message says what was looked for.
        ArtifactError: the head belongs to another backbone or engine.
        BundleError: `output` cannot be written, or the graft changed what it must not.
        BackendError: the folder cannot be run.
    """
    if artifact.task == "trajectory":
        raise ArtifactError(
            f"{artifact.source}: the head scores trajectories of agents, and a grafted generator "
            "scores the text that it writes; graft a head of texts"
        )
    source = read_folder(folder.absolute(), CheckpointError)
    check_output(output, overwrite=overwrite, grafted=True)
    progress("read", 0, 1)
    model = ir.load(source.path / source.graph)
    blocks = find_blocks(model, source)
    for one in artifact.heads.values():
        _check_fits(one, source)
    digests = {name: sha256(source.path / name) for name in (source.graph, *source.weights)}
    engine = engine_digest(list(digests.values()))
    tokenizer = source.tokenizer_digest()
    if not foreign:
        for one in artifact.heads.values():
            _check_trained_on(one, engine, tokenizer)
    progress("read", 1, 1)
    heads = head_set(artifact)
    matrix = heads.projection
    read, named = names(artifact, str(source.path), None)
    with staging(output, overwrite=overwrite, grafted=True) as place:
        files, linked = _place_files(source, place, digests, copy=copy)
        tensor = None
        if matrix is not None:
            files[MATRIX_FILE] = write_file(place / MATRIX_FILE, matrix.tobytes())
            tensor = _external(matrix)
        add_neurons(model.graph, blocks, heads.taps, NEURONS_OUTPUT, tensor)
        files[source.graph] = write_file(place / source.graph, serialized(model))
        files[HEAD_FILE] = write_file(place / HEAD_FILE, serialized(_heads_alone(artifact)))
        check = _check(source, place, heads, output, progress) if verify else None
        manifest = GraftManifest(
            format_version=FORMAT_VERSION,
            task="generation",
            backbone=Backbone(
                id=read.id,
                revision=read.revision,
                model_type=source.model_type,
                blocks=source.blocks,
                blocks_kept=source.blocks,
                context_length=source.context_length,
                named=named,
            ),
            heads=heads.specs if matrix is None else heads.projected_specs,
            neurons=heads.neurons,
            width=heads.neurons if matrix is None else matrix.shape[1],
            trained_on=_trained_on(artifact, engine, tokenizer),
            pooled=pooled,
            decisions={name: one.decision for name, one in artifact.heads.items()},
            engine=engine,
            files=files,
            weights=[*source.weights, *([MATRIX_FILE] if matrix is not None else [])],
            linked=linked,
            check=check,
            versions={
                **{package: metadata.version(package) for package in _MADE_BY},
                str(model.producer_name): str(model.producer_version),
            },
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        write_file(place / MANIFEST_FILE, encode(manifest))
    return manifest


def find_blocks(model: ir.Model, folder: GenaiFolder) -> list[Block]:
    """The blocks of a folder's graph.

    Raises:
        CheckpointError: it is built otherwise than what is known here, or grafted already.
    """
    source = str(folder.path / folder.graph)
    if any(output.name == NEURONS_OUTPUT for output in model.graph.outputs):
        raise CheckpointError(
            f"{source}: is grafted already; take the folder that it was made of, with all heads"
        )
    found = TransformerGraph(model.graph, source, folder.tokens, folder.logits)
    return found.blocks(folder.blocks, folder.cache_keys)


def _check_fits(artifact: Artifact, folder: GenaiFolder) -> None:
    """Check the head's blocks and channels against the folder's."""
    taps = artifact.head.taps
    channel = max(int(channels.max()) for channels in taps.channels.values())
    for what, found, there in (
        ("layer", taps.deepest, folder.blocks),
        ("channel", channel, folder.hidden_size),
    ):
        if found >= there:
            raise ArtifactError(
                f"{artifact.source}: reads {what} {found}; {folder.path} has {what}s 0 to "
                f"{there - 1}, so the head belongs to another backbone (its own is "
                f"{artifact.model_id!r})"
            )


def _check_trained_on(artifact: Artifact, engine: str, tokenizer: str) -> None:
    """Refuse a head of other features than those of the folder.

    Args:
        engine, tokenizer: the folder's digests.
    """
    trained_on = artifact.trained_on
    if trained_on is None:
        found = (
            "does not say that it was trained on features of a generator, which sees chat markup "
            "and the rounding of its own precision"
        )
    elif trained_on.engine != engine:
        found = (
            f"was trained on features of another engine ({trained_on.engine[:12]}…, and this is "
            f"{engine[:12]}…)"
        )
    elif trained_on.tokenizer not in (None, tokenizer):
        found = (
            "was trained with another tokenizer or chat template, by which the same text is other "
            "tokens"
        )
    else:
        return
    raise ArtifactError(
        f"{artifact.source}: {found}; train one with siren extract and siren train on this "
        "folder, or give --foreign-head to graft it all the same"
    )


def _trained_on(artifact: Artifact, engine: str, tokenizer: str) -> TrainedOn | None:
    """What the heads were trained on, if they all say so: where one was on another engine or
    tokenizer than the folder's, that; and no tokenizer where one does not say which.

    Args:
        engine, tokenizer: the folder's digests.

    Raises:
        ArtifactError: some were trained on chat text and some on plain text.
    """
    told = [one.trained_on for one in artifact.heads.values() if one.trained_on is not None]
    if len({one.text for one in told}) > 1:
        raise ArtifactError(
            f"{artifact.source}: of the heads {', '.join(artifact.heads)} some were trained on "
            "chat text and some on plain text, and one pass reads one of them"
        )
    if len(told) < len(artifact.heads):
        return None
    tokenizers = sorted((one.tokenizer for one in told), key=lambda one: one is None)
    return TrainedOn(
        engine=_other((one.engine for one in told), engine),
        text=told[0].text,
        tokenizer=_other(tokenizers, tokenizer),
    )


def _other(found: Iterable[T], own: T) -> T:
    """The first that is not `own`, where there is one."""
    return next((one for one in found if one != own), own)


def _place_files(
    source: GenaiFolder, place: Path, digests: Mapping[str, str], *, copy: bool
) -> tuple[dict[str, FileSpec], list[str]]:
    """Put all files but the graph into the new folder; weights as hard links where that can be.

    Returns:
        What each is, and the names of those that are links.
    """
    files, linked = {}, []
    for name in source.files:
        if name in (source.graph, MANIFEST_FILE, HEAD_FILE, MATRIX_FILE):
            continue
        old, new = source.path / name, place / name
        if name in source.weights and not copy:
            linked += [name] if link_or_copy(old, new) else []
        else:
            shutil.copyfile(old, new)
        files[name] = FileSpec(size=new.stat().st_size, sha256=digests.get(name) or sha256(new))
    return files, linked


def link_or_copy(old: Path, new: Path) -> bool:
    """Make a hard link, or a copy where that cannot be; return whether it is a link."""
    try:
        os.link(os.path.realpath(old), new)
    except OSError as failure:
        if is_of_caller(failure):
            raise
        # On another disk, or one that has no links.
        shutil.copyfile(old, new)
        return False
    return True


def _check(
    source: GenaiFolder, grafted: Path, heads: HeadSet, output: Path, progress: Progress
) -> GraftCheck:
    """Compare the grafted folder with the plain one, and with one that gives whole states."""
    taps = heads.taps
    with scratch(output) as whole:
        model = ir.load(source.path / source.graph)
        states = states_of(find_blocks(model, source), taps)
        names = [f"siren.{block}.state" for block in states]
        add_states(model.graph, list(states.values()), names)
        _place_files(source, whole, dict.fromkeys(source.files, "-"), copy=False)
        (whole / source.graph).write_bytes(serialized(model))
        channels = list(taps.channels.values())
        folders = Folders(source.path, grafted, whole)
        return check_graft(folders, channels, heads.projection, names, progress)


def _external(matrix: NDArray[np.float32]) -> ir.ExternalTensor:
    """The matrix as a weight of the graph, in a file of its own."""
    return ir.ExternalTensor(
        MATRIX_FILE,
        0,
        matrix.nbytes,
        ir.DataType.FLOAT,
        shape=ir.Shape(matrix.shape),
        name=MATRIX_FILE,
    )


def _heads_alone(artifact: Artifact) -> ir.Model:
    """head.onnx with its weights inside, over what the grafted graph gives."""
    projected = head_set(artifact).projection is not None
    graph = author_projected_heads(artifact) if projected else author_head_alone(artifact)
    return graph.whole()


def serialized(model: ir.Model) -> bytes:
    """A model's bytes; weights that lie outside stay there."""
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data
