"""Train a small head in processes that are killed again and again (see train/test_killed.py).

Usage: python killed_training.py FOLDER BACKBONE KILLS. Each run is a fork of this process, which
has imported everything and computed nothing, so a run costs no imports. It is killed after a
random share of the time that an undisturbed run took; one that ends before is compared with the
undisturbed one, and a new one begins. Prints what happened as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from labelled import make_rows, write_jsonl
from siren_export.sources.checkpoint import load_checkpoint
from siren_train.data.rows import Columns
from siren_train.data.sources import parse_source
from siren_train.fit import pipeline
from siren_train.fit.report import write_report
from siren_train.fit.settings import Settings
from siren_train.store.extract import extract

SETTINGS = Settings(trials=3, members=2, strengths=(0.1, 0.01))


def main(folder: Path, backbone: str, kills: int) -> None:
    data = write_jsonl(folder / "data.jsonl", make_rows(160))
    draw = random.Random(0)
    start = time.monotonic()
    status = run(folder / "undisturbed", data, backbone)
    seconds, expected = time.monotonic() - start, contents(folder / "undisturbed")
    killed: list[str] = []
    finished, equal = 0, status == 0
    while len(killed) < kills or finished == 0:
        output = folder / f"run-{finished}"
        delay = None if len(killed) >= kills else draw.uniform(0.02, 0.5) * seconds
        if run(output, data, backbone, delay) == 0:
            equal = equal and contents(output) == expected
            finished += 1
        else:
            killed.append(stage(output))
    print(json.dumps({"killed": killed, "finished": finished, "equal": equal}))


def run(folder: Path, data: Path, backbone: str, delay: float | None = None) -> int:
    """Fork a run that is killed after `delay` seconds; return its wait status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(folder, data, backbone)
            status = 0
        finally:
            os._exit(status)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def train(folder: Path, data: Path, backbone: str) -> None:
    store = extract(
        [parse_source(str(data))],
        Columns(),
        load_checkpoint(backbone),
        folder / "store",
        model_id=backbone,
        max_length=48,
        threads=1,
        chunk_rows=16,
    )
    report = pipeline.train([store], folder / "head", folder / "work", SETTINGS, workers=1)
    write_report(report, folder / "head")


def contents(folder: Path) -> dict[str, bytes]:
    """The head, its report and the store's arrays.

    A file whose name starts with a dot was being written when a run was killed, and is none of
    these.
    """
    files = [*(folder / "head").iterdir(), *(folder / "store").glob("*.npy")]
    return {path.name: path.read_bytes() for path in files if not path.name.startswith(".")}


def stage(folder: Path) -> str:
    """What a killed run had come to."""
    if (folder / "work" / "trials.jsonl").exists():
        return "search"
    return "probes" if (folder / "work").exists() else "extraction"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
