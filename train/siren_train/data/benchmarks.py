"""The public benchmarks that `siren evaluate` knows by name, and what the SIREN paper reports.

Hub data sets, configurations, splits, columns and label rules are those of the paper's code; see
benchmark_rows.py, which has the rules. Its figures are macro-F1 in percent, from the table of
results in the same repository's README (at f0ca465), which is that of arXiv 2604.18519.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from siren_runtime.errors import InputError

from . import benchmark_rows as rows
from .sources import Source
from .token_spans import load_tokenizer, located

SPLIT = "test"  # of every benchmark's rows, whatever the hub calls that part
PAPER = "arXiv 2604.18519, by its repository github.com/CSSLab/SIREN, README at f0ca465"
SYSTEMS = (
    "SIREN, Qwen3-0.6B", "Qwen3Guard-Gen-0.6B", "SIREN, Llama-3.2-1B", "Llama-Guard-3-1B",
    "SIREN, Qwen3-4B", "Qwen3Guard-Gen-4B", "SIREN, Llama-3.1-8B", "Llama-Guard-3-8B",
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """One data set, as the paper measures it.

    Attributes:
        name: what it is called on the command line and in tables.
        repository, config, part: the hub's data set, its configuration (None is its only one), and
            the split of it that is measured.
        adapt: what the columns of a row become; see benchmark_rows.py.
        figures: macro-F1 in percent of each of `SYSTEMS`; none where the paper's table has it not.
        streams: its rows are responses that arrive piece by piece.
        in_tokens: harm is given in tokens of Qwen3; `adapt` takes the tokenizer too.
        note: what a reader of a figure must know.
    """

    name: str
    repository: str
    config: str | None
    part: str
    adapt: Callable[..., dict[str, Any] | None]
    figures: tuple[float, ...] = ()
    streams: bool = False
    in_tokens: bool = False
    note: str = ""


_QWEN3GUARD = "Qwen/Qwen3GuardTest"
_ALL_ROWS = (
    "all rows are scored: the paper measures a fifth of them that its code draws without a seed, "
    "and trains on the rest; the released heads have seen four rows in five, and so has any guard "
    "that learned from this set"
)

BENCHMARKS = (
    Benchmark(
        "toxicchat", "lmsys/toxic-chat", "toxicchat0124", "test", rows.toxicchat,
        (81.4, 82.0, 80.0, 63.3, 83.5, 84.9, 83.1, 72.2),
    ),
    Benchmark(
        "openai-moderation", "walledai/openai-moderation-dataset", None, "train",
        rows.openai_moderation, (90.0, 75.9, 92.9, 67.5, 91.2, 78.3, 92.0, 85.3), note=_ALL_ROWS,
    ),
    Benchmark(
        "aegis", "nvidia/Aegis-AI-Content-Safety-Dataset-1.0", None, "test", rows.aegis,
        (83.3, 78.8, 82.1, 59.5, 82.9, 78.2, 82.9, 67.1),
    ),
    Benchmark(
        "aegis2", "nvidia/Aegis-AI-Content-Safety-Dataset-2.0", None, "test", rows.aegis2,
        (82.0, 82.0, 82.7, 72.6, 83.4, 82.5, 82.9, 78.0),
    ),
    Benchmark(
        "wildguardmix", "allenai/wildguardmix", "wildguardtest", "test", rows.wildguardmix,
        (86.1, 89.1, 86.5, 78.6, 88.3, 90.6, 86.7, 81.3),
    ),
    Benchmark(
        "saferlhf", "PKU-Alignment/PKU-SafeRLHF", "default", "test", rows.saferlhf,
        (91.5, 86.9, 92.0, 83.3, 93.2, 89.2, 92.5, 86.2),
    ),
    Benchmark(
        "beavertails", "PKU-Alignment/BeaverTails", None, "30k_test", rows.beavertails,
        (82.9, 77.1, 83.7, 70.0, 84.3, 80.1, 83.8, 68.8),
    ),
    *(
        Benchmark(
            f"thinking-{family.lower()}", _QWEN3GUARD, None, "thinking", rows.thinking_of(family)
        )
        for family in ("GLM", "Qwen3", "DeepSeek")
    ),
    Benchmark(
        "thinking-loc", _QWEN3GUARD, None, "thinking_loc", located, streams=True, in_tokens=True
    ),
    Benchmark(
        "thinking-safe", _QWEN3GUARD, None, "thinking", rows.thinking_safe_stream, streams=True
    ),
    Benchmark(
        "response-loc", _QWEN3GUARD, None, "response_loc", located, streams=True, in_tokens=True
    ),
)  # fmt: skip

GROUPS = {
    "siren": tuple(benchmark.name for benchmark in BENCHMARKS if benchmark.figures),
    "thinking": ("thinking-glm", "thinking-qwen3", "thinking-deepseek"),
    "qwen3guard-streams": ("thinking-loc", "thinking-safe", "response-loc"),
}
NAMES = (*GROUPS, *(benchmark.name for benchmark in BENCHMARKS))


def find_benchmarks(names: Iterable[str]) -> list[Benchmark]:
    """Return the benchmarks of these names, each once; a group's name stands for several.

    Raises:
        InputError: a name is unknown, or some are streams and others are not.
    """
    found: dict[str, Benchmark] = {}
    by_name = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    for name in names:
        if name not in NAMES:
            raise InputError(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
        for one in GROUPS.get(name, (name,)):
            found[one] = by_name[one]
    streams = [benchmark.name for benchmark in found.values() if benchmark.streams]
    if streams and len(streams) < len(found):
        raise InputError(f"{', '.join(streams)}: streams are measured by themselves")
    return list(found.values())


def benchmark_sources(benchmarks: Sequence[Benchmark], downloads: Path | None) -> list[Source]:
    """Return where their rows come from.

    Args:
        downloads: a folder that has each repository's files in a folder of the repository's name,
            such as lmsys/toxic-chat. None is the hub; what comes from there stays in its cache.

    Raises:
        InputError: a folder, or the tokenizer that spans are in, is not there.
    """
    sources = []
    for benchmark in benchmarks:
        name = benchmark.repository
        if downloads is not None:
            folder = downloads / name
            if not folder.is_dir():
                raise InputError(
                    f"{folder}: no such folder; hf download {name} --repo-type dataset "
                    f"--local-dir {folder}"
                )
            name = str(folder)
        config = f":{benchmark.config}" if benchmark.config else ""
        adapt = benchmark.adapt
        if benchmark.in_tokens:
            adapt = partial(adapt, tokenizer=load_tokenizer(downloads))
        location = f"hub:{name}{config}@{benchmark.part}"
        sources.append(Source(location, SPLIT, benchmark.name, adapt))
    return sources


def paper_figures(benchmarks: Sequence[Benchmark]) -> dict[str, dict[str, float]]:
    """Return what the paper reports: macro-F1 in percent, by system and then by benchmark."""
    return {
        system: {b.name: b.figures[index] for b in benchmarks if b.figures}
        for index, system in enumerate(SYSTEMS)
        if any(b.figures for b in benchmarks)
    }
