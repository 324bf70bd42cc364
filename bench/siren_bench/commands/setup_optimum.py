"""`siren bench setup-optimum`."""

from siren_bench.peers.optimum import set_up_optimum
from siren_bench.records.progress import say


def setup_optimum() -> None:
    """Make the environment that the optimum peers run in: about 1 GB, with its own transformers."""
    say(f"Optimum is ready in {set_up_optimum()}")
