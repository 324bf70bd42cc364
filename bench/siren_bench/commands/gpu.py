"""`siren bench gpu`."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from siren_bench.engines.engine import Engine, LlmSiren, SirenEdge
from siren_bench.engines.process import EngineProcess
from siren_bench.gpu.measure import (
    fidelity_entries,
    gpu_tables,
    latency_entries,
    load_one_by_one,
    scores_of,
    throughput_entries,
)
from siren_bench.gpu.roofline import (
    gpu_ceilings_line,
    measure_gpu_ceilings,
    require_gpu,
    used_gpu_memory,
)
from siren_bench.peers.generate import Generate
from siren_bench.peers.missing import PeerMissing
from siren_bench.peers.registry import make_peer
from siren_bench.records.progress import console, say
from siren_bench.subjects.texts import texts_of
from siren_export.export import export_bundle
from siren_export.verify.texts import TEXTS
from siren_runtime.backends.tensorrt.build import build_plan
from siren_runtime.backends.tensorrt.library import Flavor, load_library
from siren_runtime.backends.tensorrt.plan import recorded_flavors
from siren_runtime.bundle.manifest import MANIFEST_FILE
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.types import Precision, Target
from siren_runtime.errors import SirenError

from . import options
from .finish import finish
from .workbench import Workbench, engine_settings, open_workbench

_BACKENDS = ("cuda", *get_args(Flavor))
_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
_PEERS = "llm-siren-bfloat16,torch-compile-bfloat16,generate-bfloat16-4,generate-bfloat16-128"


def gpu(
    head: options.Head,
    backbone: options.Backbone = None,
    engines: Annotated[
        str,
        typer.Option(
            help=f"Ours, as BACKEND-PRECISION: {', '.join(_BACKENDS)}; {', '.join(_PRECISIONS)}."
        ),
    ] = "cuda-fp16,tensorrt-rtx-fp16,tensorrt-fp16",
    peers: Annotated[
        str, typer.Option(help="llm-siren-…, torch-compile-… or generate-…; empty for none.")
    ] = _PEERS,
    tokens: Annotated[str, typer.Option(help="Lengths of single texts.")] = "32,128,512",
    batches: Annotated[
        str, typer.Option(help="Texts in a batch, of the longest length.")
    ] = "1,8,32",
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each case.")] = 50,
    threads: options.Threads = 4,
    fidelity: Annotated[
        bool, typer.Option(help="Compare scores with our float32 bundle's on the CPU.")
    ] = True,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Measure engines on this machine's NVIDIA GPU: latency, throughput, memory and fidelity.

    scripts/bench-gpu sets up an environment for it. What cannot run here is named with the reason.
    """
    lengths, sizes = (
        options.numbers_of("--tokens", tokens),
        options.numbers_of("--batches", batches),
    )
    ours, peer_list = engines_of(engines), options.peers_of(peers)
    device = require_gpu()
    with open_workbench(head, backbone, keep, lengths[-1]) as bench, ExitStack() as stack:
        made, missing = _engines(bench, ours, peer_list, threads)
        texts = texts_of(bench.checkpoint.tokenizer_json, lengths)
        with console.status("measuring the GPU"):
            ceilings = measure_gpu_ceilings(device)
        with console.status("loading engines"):
            longest = texts[lengths[-1]]
            loaded, results, failed = load_one_by_one(stack, made, used_gpu_memory, longest)
        with console.status("timing single texts"):
            timed, broken = latency_entries(loaded, texts, rounds, bench.size, ceilings)
            results += timed
            loaded = [one for one in loaded if one[0].name not in broken]
        with console.status("timing batches"):
            results += throughput_entries(
                loaded, longest, lengths[-1], sizes, rounds, bench.size, ceilings
            )
        if fidelity:
            with console.status("comparing scores"):
                reference = _reference(bench, threads)
                threshold = bench.artifact.threshold
                results += fidelity_entries(loaded, TEXTS, reference, threshold)
        settings = {
            **bench.described,
            "rounds": rounds,
            "threads": threads,
            "ceilings": ceilings.to_dict(),
            **engine_settings(made, {**missing, **failed, **broken}),
        }
    table = f"{gpu_tables(results)}\n{gpu_ceilings_line(ceilings)}\n"
    finish(options.result_path(output, "gpu", head), "gpu", settings, results, table)


def engines_of(names: str) -> list[tuple[str, str]]:
    """Read --engines: backend and precision of each, known and in order."""
    found = []
    for name in [name.strip() for name in names.split(",") if name.strip()]:
        backend, _, precision = name.rpartition("-")
        if backend not in _BACKENDS or precision not in _PRECISIONS:
            raise typer.BadParameter(
                f"{name!r} is no engine; give BACKEND-PRECISION of {', '.join(_BACKENDS)} and "
                f"{', '.join(_PRECISIONS)}"
            )
        found.append((backend, precision))
    return list(dict.fromkeys(found))


def _engines(
    bench: Workbench, ours: list[tuple[str, str]], peers: list[str], threads: int
) -> tuple[list[Engine], dict[str, str]]:
    """Export, compile and make the engines, ours first; and what is missing for the others."""
    made: list[Engine] = []
    missing: dict[str, str] = {}
    for backend, precision in ours:
        name = f"{backend}-{precision}"
        with console.status(f"preparing {name}"):
            try:
                bundle = _bundle(bench, backend, precision)
                made.append(SirenEdge(bundle, precision, threads, backend=backend))
            except SirenError as reason:
                missing[name] = str(reason)
    for name in peers:
        with console.status(f"preparing {name}"):
            try:
                peer = make_peer(name, bench, threads)
                if not isinstance(peer, (Generate, LlmSiren)):
                    raise PeerMissing("it does not run on a GPU")
                made.append(replace(peer, device="cuda"))
            except PeerMissing as reason:
                missing[name] = str(reason)
    for name, why in missing.items():
        say(f"without {name}: {why}")
    return made, missing


def _bundle(bench: Workbench, backend: str, precision: str) -> Path:
    """Export for a backend, and compile where it runs plans."""
    if backend == "cuda":
        return bench.bundle(precision)
    library = load_library(cast("Flavor", backend))
    older = backend == "tensorrt" and library.version.startswith("10.")
    target = cast("Target", "tensorrt10" if older else backend)
    path = bench.folder / f"bundle-{target}-{precision}-{bench.artifact.max_length}"
    if not (path / MANIFEST_FILE).exists():
        made_for = cast("Precision", precision)
        export_bundle(bench.artifact, bench.checkpoint, path, precision=made_for, target=target)
    bundle = load_bundle(path)
    if library.flavor not in recorded_flavors(bundle):
        build_plan(bundle, library)
    return path


def _reference(bench: Workbench, threads: int) -> list[float]:
    """Our float32 scores of the built-in texts, on the CPU."""
    engine = SirenEdge(bench.bundle("fp32"), "fp32", threads)
    with EngineProcess(engine) as process:
        return scores_of(process, engine, TEXTS)
