"""Run as a module in a fresh process: load an engine, score, and say how long and how large.

The engine and the texts come pickled on standard input; the answer is one JSON object, the last
line of standard output.
"""

import json
import pickle
import sys
import time


def main() -> None:
    """Load, score each text once, and report."""
    engine, texts = pickle.load(sys.stdin.buffer)
    start = time.perf_counter()
    model = engine.load()
    loaded = time.perf_counter()
    engine.score(model, texts[0])
    first = time.perf_counter()
    ready_at = time.monotonic()  # one clock for all processes of the machine

    from siren_bench.engines.process import peak_memory, resident_memory

    resident = [resident_memory()]
    for text in texts[1:]:
        engine.score(model, text)
        resident.append(resident_memory())
    answer = {
        "load_s": loaded - start,
        "first_score_s": first - loaded,
        "ready_at": ready_at,
        "resident_bytes": resident,
        "peak_bytes": max(peak_memory(), *resident),  # an engine may be a child process
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
