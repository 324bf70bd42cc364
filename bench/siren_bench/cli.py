"""`siren bench`: measure guards, and make what they are measured on."""

import typer

from .commands.export_memory import export_memory
from .commands.latency import latency
from .commands.setup_optimum import setup_optimum
from .commands.synthesize import synthesize

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Measure guards against their peers."
)

for _command, _example in (
    (latency, "latency minilm --tokens 8,32,128"),
    (export_memory, "export-memory qwen3-0.6b llama-3.1-8b"),
    (synthesize, "synthesize qwen3-0.6b -o random-0.6b"),
    (setup_optimum, "setup-optimum"),
):
    app.command(epilog=f"Example: siren bench {_example}")(_command)
