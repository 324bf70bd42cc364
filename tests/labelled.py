"""Labelled text with an obvious signal, for the tests of training."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = [
    words.split()
    for words in (
        "bread flour water salt yeast oven poem sea wind lighthouse keeper sleep",
        "weapon police lock hide hate pick steal hurt break fear threat hit",
        "fox dog lazy quick brown jump over number times said so they",
    )
]
COMMON = ("the", "a", "an", "and", "of", "to", "in", "how", "do", "write", "explain", "please")

Rows = list[dict[str, Any]]


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


def make_rows(count: int, *, seed: int = 0, classes: int = 2, name: str = "row") -> Rows:
    """Return rows in all three splits; a class shows in its words."""
    rng = random.Random(f"{name}{seed}")
    rows = []
    for index in range(count):
        label = index % classes
        words = rng.choices(COMMON, k=rng.randint(2, 10)) + rng.choices(WORDS[label], k=8)
        rng.shuffle(words)
        rows.append(
            {
                "id": f"{name}-{index}",
                "prompt": " ".join(words),
                "response": None if index % 3 else "yes " + rng.choice(COMMON),
                "label": label,
                "category": f"kind {index % 5}",
                "split": ("train", "train", "train", "validation", "test")[index // classes % 5],
            }
        )
    return rows


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
