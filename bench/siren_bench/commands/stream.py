"""`siren bench stream`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from siren_bench.engines.engine import SirenEdge
from siren_bench.records.progress import progress_bar
from siren_bench.streams.stream import Plan, measure_streams
from siren_bench.streams.table import stream_tables
from siren_bench.subjects.texts import texts_of
from siren_export.families.registry import parse_config
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.errors import InputError

from . import options
from .finish import finish
from .workbench import Workbench, engine_settings, open_workbench

_DEFAULTS = Plan()
_LLM_SIREN = options.LLM_SIREN.split(",")
_GENERATORS = ("genai-int4", "genai-float32")


def stream(
    head: options.Head,
    backbone: options.Backbone = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help=f"Any of {', '.join(options.PRECISIONS)}. [default: fp32; none where --bundle is "
            "given]"
        ),
    ] = None,
    bundles: Annotated[
        list[Path] | None,
        typer.Option(
            "--bundle",
            help="An exported bundle of the same backbone to time too, such as a shipped guard's, "
            "whose head stops before the last block; may be given again.",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=32, help="Of the stream.")] = _DEFAULTS.tokens,
    long_tokens: Annotated[
        int, typer.Option(min=32, help="Of the long stream.")
    ] = _DEFAULTS.long_tokens,
    walks: Annotated[
        int, typer.Option(min=1, help="How often streams and generators take their turns.")
    ] = _DEFAULTS.walks,
    peers: Annotated[
        str,
        typer.Option(
            help=f"Any of {', '.join((*_LLM_SIREN, *_GENERATORS))}; empty for none. genai is "
            "onnxruntime-genai decoding with the whole backbone and its language-model head."
        ),
    ] = options.LLM_SIREN,
    threads: options.Threads = 2,
    keep: options.Keep = None,
    output: Annotated[
        Path | None, options.output_option("bench/results/stream-HEAD-PRECISION….json")
    ] = None,
) -> None:
    """Time streams of a decoder guard against llm-siren's score_streaming and generators.

    A token alone and in chunks, early and late, many streams in a batch, and a long stream, whose
    time and memory are also drawn. llm-siren is timed at a few prefixes and extrapolated;
    generators write a token for each that our streams read, in turns in one process.

    For example, heads on every block of SmolLM2 and the shipped one, which stops at block 22:

    siren bench stream smollm2-all-blocks --precision int8,fp32 --bundle engines/smollm2/bundle
    --peers genai-int4
    """
    precisions = options.precisions_of(precision or "fp32") if precision or not bundles else []
    plan = Plan(
        threads=threads,
        tokens=tokens,
        late=min(_DEFAULTS.late, tokens - 12),
        sampled=(*(n for n in _DEFAULTS.sampled if n < tokens), tokens),
        long_tokens=long_tokens,
        turn=min(_DEFAULTS.turn, tokens - 2),
        walks=walks,
    )
    names = _peers(peers, tokens)
    with open_workbench(head, backbone, keep) as bench:
        _check_decoder(bench, head)
        texts = texts_of(bench.checkpoint.tokenizer_json, plan.sampled)
        made, missing = bench.engines(precisions, names, threads)
        made = [
            *(_described(one) if isinstance(one, SirenEdge) else one for one in made),
            *(_given(path, bench, threads) for path in bundles or []),
        ]
        if len({engine.name for engine in made}) < len(made):
            raise typer.BadParameter("--bundle: the tables tell folders by name; two have the same")
        with progress_bar() as progress:
            results, failed = measure_streams(made, texts, plan, progress)
        settings = {
            **bench.described,
            "threads": threads,
            "plan": vars(plan),
            "bundles": {
                path.resolve().name: load_bundle(path).manifest.weights_sha256
                for path in bundles or []
            },
            **engine_settings(made, {**missing, **failed}),
        }
    timed = dict.fromkeys(one.precision for one in made if isinstance(one, SirenEdge))
    path = options.result_path(output, "stream", "-".join((Path(head).resolve().name, *timed)))
    finish(path, "stream", settings, results, stream_tables(results, plan))


def _peers(peers: str, tokens: int) -> list[str]:
    """Read --peers: each known; a generator writes as many tokens as the stream reads."""
    names = [name.strip() for name in peers.split(",") if name.strip()]
    known = (*_LLM_SIREN, *_GENERATORS)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}")
    return options.peers_of(
        ",".join(f"{name}-{tokens}" if name in _GENERATORS else name for name in names)
    )


def _check_decoder(bench: Workbench, head: str) -> None:
    """Refuse an encoder, which has no streaming graph."""
    if not parse_config(bench.checkpoint.config, bench.checkpoint.source).causal:
        raise InputError(f"{head}: not a decoder, so there is no streaming graph to time")


def _given(path: Path, bench: Workbench, threads: int) -> SirenEdge:
    """An exported bundle, which must be of our backbone and stream in ONNX Runtime on a CPU.

    Raises:
        BundleError: the bundle is damaged.
        InputError: it is another's, cannot stream, or is of a precision that no CPU computes in.
    """
    manifest = load_bundle(path).manifest
    own = parse_config(bench.checkpoint.config, bench.checkpoint.source)
    found = manifest.backbone.model_type, manifest.backbone.blocks
    if found != (own.model_type, own.blocks):
        raise InputError(
            f"{path}: a bundle of {found[0]} of {found[1]} blocks, but {bench.subject.description} "
            f"is {own.model_type} of {own.blocks}"
        )
    if not manifest.streams:
        raise InputError(f"{path}: has no streaming graph to time; export it without --no-stream")
    if manifest.precision not in options.PRECISIONS:
        raise InputError(
            f"{path}: ONNX Runtime's CPU has no {manifest.precision} products, so its times would "
            "say nothing of them"
        )
    engine = SirenEdge(path.resolve(), manifest.precision, threads)
    return _described(engine, f" ({path.resolve().name})")


def _described(engine: SirenEdge, folder: str = "") -> SirenEdge:
    """The engine, called by its precision and how many of the backbone's blocks it runs."""
    backbone = load_bundle(engine.bundle).manifest.backbone
    blocks = f"{backbone.blocks_kept} of {backbone.blocks} blocks"
    return replace(engine, label=f"{engine.precision}, {blocks}{folder}")
