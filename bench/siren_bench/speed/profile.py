"""Where an engine's time goes: the share of every operator, by ONNX Runtime's profiler."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siren_bench.engines.engine import SirenEdge
from siren_bench.engines.process import in_fresh_process
from siren_bench.records.record import markdown_table
from siren_runtime.backends.onnxruntime.providers import import_onnxruntime
from siren_runtime.text.reading import AS_LLM_SIREN

_WARM_UP = 2


def measure_profile(engine: SirenEdge, texts: Mapping[int, str], runs: int) -> list[dict[str, Any]]:
    """Score each text several times under the profiler, in a fresh process for each length.

    Returns:
        One entry a length: the mean seconds of each operator in one score, largest first. Time
        outside operators, such as tokenizing, is not in it.
    """
    return [
        {
            "engine": engine.name,
            "tokens": tokens,
            "operators_s": in_fresh_process(_profile, engine, text, runs),
        }
        for tokens, text in texts.items()
    ]


def profile_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the share of each operator that takes one percent or more somewhere."""
    header = ["operator", *(f"{e['engine']}, {e['tokens']} tokens" for e in results)]
    shares = [
        {name: s / sum(e["operators_s"].values()) for name, s in e["operators_s"].items()}
        for e in results
    ]
    names = {name for column in shares for name in column}
    order = sorted(names, key=lambda name: -max(column.get(name, 0) for column in shares))
    rows = [
        [name, *(f"{column.get(name, 0):.1%}" for column in shares)]
        for name in order
        if max(column.get(name, 0) for column in shares) >= 0.01
    ]
    totals = [f"{1e3 * sum(e['operators_s'].values()):.1f} ms" for e in results]
    return markdown_table(header, [*rows, ["all", *totals]])


def _profile(engine: SirenEdge, text: str, runs: int) -> dict[str, float]:
    from siren_runtime import Guard

    onnxruntime = import_onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = engine.threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.log_severity_level = 3
        guard = Guard.load(engine.bundle, backend="cpu", session_options=options, **AS_LLM_SIREN)
        for _ in range(_WARM_UP + runs):
            guard.score(text)
        guard.close()  # which ends the session, and a session that ends writes its profile
        # A small one beside it is of the session by which a guard copies the options.
        written = max(Path(folder).iterdir(), key=lambda path: path.stat().st_size)
        events = json.loads(written.read_bytes())
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    nodes = [e for e in events if e["cat"] == "Node" and e["ts"] >= starts[_WARM_UP]]
    return {name: microseconds / 1e6 / runs for name, microseconds in own_time(nodes).most_common()}


def own_time(nodes: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Sum the microseconds of each operator, those of an If without the operators in it.

    Args:
        nodes: the profiler's events of nodes, in any order; nodes run one after the other.
    """
    total: Counter[str] = Counter()
    choice_ends = 0
    for node in sorted(nodes, key=lambda node: (node["ts"], -node["dur"])):
        name = node["args"]["op_name"]
        total[name] += node["dur"]
        if node["ts"] < choice_ends:
            total["If"] -= node["dur"]
        elif name == "If":
            choice_ends = node["ts"] + node["dur"]
    return total
