"""`siren bench throughput`."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from siren_bench.engines.process import load_engines
from siren_bench.peers.registry import is_generative
from siren_bench.records.progress import console, progress_bar, say
from siren_bench.speed.throughput import measure_throughput, sweep, throughput_table
from siren_bench.subjects.corpus import load_corpus
from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.text.rules import clean
from siren_runtime.text.tokenizer import Tokenizer

from . import options
from .finish import finish
from .workbench import engine_settings, open_workbench


def throughput(
    head: options.Head,
    corpus: Annotated[
        list[Path], typer.Argument(help="JSON lines, as siren score reads them.", exists=True)
    ],
    backbone: options.Backbone = None,
    engines: options.Engines = "fp32",
    peers: options.Peers = options.LLM_SIREN,
    texts: Annotated[
        int | None, typer.Option(min=1, help="So many, evenly spaced over the corpus; default all.")
    ] = None,
    batches: Annotated[str, typer.Option(help="Texts handed over in one call.")] = "1,8,32",
    token_budgets: Annotated[
        str, typer.Option(help="Of our micro-batches, at the largest batch; empty for none.")
    ] = "256,1024,4096",
    rounds: Annotated[int, typer.Option(min=1, help="Passes over the texts.")] = 3,
    threads: options.Threads = 2,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Score a corpus as it comes: texts and tokens a second against llm-siren's score_batch.

    Every engine is swept over batch sizes, peers over single texts in any case, ours over token
    budgets too; ratios compare each engine's best setting. Generative peers take one text at a time
    and are left out.
    """
    sizes = options.numbers_of("--batches", batches)
    budgets = options.numbers_of("--token-budgets", token_budgets) if token_budgets else []
    precisions, peer_list = options.precisions_of(engines), options.peers_of(peers)
    generative = [name for name in peer_list if is_generative(name)]
    if generative:
        say(f"without {', '.join(generative)}: generative guards take no batches")
    peer_list = [name for name in peer_list if name not in generative]
    rows = load_corpus(corpus, limit=texts)
    with open_workbench(head, backbone, keep) as bench, ExitStack() as stack:
        made, missing = bench.engines(precisions, peer_list, threads)
        tokenizer_file = bench.bundle(precisions[0]) / TOKENIZER_FILE
        tokenizer = Tokenizer(tokenizer_file, bench.artifact.max_length)
        lengths = [len(ids) for ids in tokenizer.encode_batch([clean(row.text) for row in rows])]
        with console.status("loading engines"):
            loaded, failed = load_engines(stack, made)
        cases = sweep(loaded, sizes, budgets)
        with progress_bar() as progress:
            results, broken = measure_throughput(
                cases, [row.text for row in rows], sum(lengths), rounds, progress
            )
        settings = {
            **bench.described,
            "corpus": [file.name for file in corpus],
            "texts": len(rows),
            "tokens_of_texts": lengths,
            "rounds": rounds,
            "threads": threads,
            **engine_settings(
                made,
                {**missing, **failed, **broken, **dict.fromkeys(generative, "takes no batches")},
            ),
        }
    table = throughput_table(results)
    finish(options.result_path(output, "throughput", head), "throughput", settings, results, table)
