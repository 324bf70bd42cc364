"""`siren bench`: measure guards, and make what they are measured on."""

import signal

import typer

from siren_bench.commands.cascade import cascade
from siren_bench.commands.cold_start import cold_start, memory
from siren_bench.commands.export_memory import export_memory
from siren_bench.commands.extraction import extraction
from siren_bench.commands.fidelity import fidelity
from siren_bench.commands.fidelity_verdicts import fidelity_verdicts
from siren_bench.commands.gpu import gpu
from siren_bench.commands.heads import heads
from siren_bench.commands.large_texts import large_texts
from siren_bench.commands.latency import latency
from siren_bench.commands.layers import layers
from siren_bench.commands.plan_build import plan_build
from siren_bench.commands.profile import profile
from siren_bench.commands.report import report
from siren_bench.commands.same_pass import same_pass
from siren_bench.commands.same_pass_verdicts import same_pass_verdicts
from siren_bench.commands.scaling import scaling
from siren_bench.commands.serve import serve
from siren_bench.commands.setup_optimum import setup_optimum
from siren_bench.commands.spans import spans
from siren_bench.commands.stream import stream
from siren_bench.commands.stream_data import stream_data
from siren_bench.commands.synthesize import synthesize
from siren_bench.commands.throughput import throughput
from siren_runtime.commands.console import need

need("matplotlib", "onnxruntime", "psutil")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",  # by rich's own, "[default: …]" would be taken for a style
    help="Measure guards against their peers.",
)


@app.callback()
def _end_on_request() -> None:
    # As Control-C does: temporary folders are removed and child processes ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


for _command, *_examples in (
    (latency, "latency minilm --tokens 8,32,128"),
    (throughput, "throughput minilm chats.jsonl --batches 1,32"),
    (memory, "memory minilm --tokens 32,512"),
    (cold_start, "cold-start minilm"),
    (scaling, "scaling qwen3-0.6b qwen3-1.7b qwen3-4b"),
    (spans, "spans minilm --tokens 40,512,2048"),
    (heads, "heads qwen3-0.6b --counts 2,10"),
    (cascade, "cascade my-guard chats.jsonl"),
    (large_texts, "large-texts minilm"),
    (
        serve,
        "serve minilm --callers 1,16 --rates 0.5,2",
        "serve minilm --hostile all --rates 0.5 --rounds 3",
        "serve minilm --first-token --tokens 20,100 --rounds 20",
    ),
    (same_pass, "same-pass smollm2-genai smollm2-guarded --bundle guards/smollm2"),
    (same_pass_verdicts, "same-pass-verdicts smollm2-guarded responses.jsonl"),
    (stream, "stream qwen3-0.6b"),
    (extraction, "extraction minilm chats.jsonl"),
    (stream_data, "stream-data chats.jsonl -o streams.jsonl"),
    (gpu, "gpu qwen3-0.6b --engines cuda-fp16,tensorrt-rtx-fp16"),
    (fidelity, "fidelity minilm chats.jsonl --split test"),
    (
        fidelity_verdicts,
        "fidelity-verdicts bench/results/fidelity-minilm.json minilm chats.jsonl",
    ),
    (layers, "layers minilm chats.jsonl --precision int8"),
    (profile, "profile minilm --tokens 32,512"),
    (report, "report qwen3-0.6b minilm --document docs/benchmarks.md --readme README.md"),
    (export_memory, "export-memory qwen3-0.6b llama-3.1-8b"),
    (plan_build, "plan-build qwen3-0.6b llama-3.2-1b"),
    (synthesize, "synthesize qwen3-0.6b -o random-0.6b"),
    (setup_optimum, "setup-optimum"),
):
    _epilog = "\n\n".join(f"Example: siren bench {example}" for example in _examples)
    app.command(epilog=_epilog)(_command)
