"""Which layers' quantization moves scores: one layer in 8 or 4 bits at a time, on real text."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from siren_bench.records.record import markdown_table
from siren_export.tune.sensitivity import Layer

_SMALLEST_SHARE = 0.01  # of the summed effect, for a layer to have a row of its own
_BLOCK = re.compile(r"^layers?\.\d+/")


def layer_results(layers: Sequence[Layer], thresholds: np.ndarray) -> list[dict[str, Any]]:
    """Describe each layer, in the order given.

    Args:
        thresholds: Float64 [texts], from which score on each is harmful.

    Returns:
        One entry a layer: its matrices and their elements, its effect (mean square of the moved
        log-odds), the mean |score difference|, and how many verdicts changed.
    """
    return [
        {
            "layer": _name(layer),
            "matrices": list(layer.matrices),
            "elements": layer.elements,
            "effect": layer.effect,
            "mean_difference": float(np.abs(layer.scores - layer.expected).mean()),
            "changed_verdicts": int(
                ((layer.scores >= thresholds) != (layer.expected >= thresholds)).sum()
            ),
        }
        for layer in layers
    ]


def layers_table(results: Sequence[dict[str, Any]]) -> str:
    """Lay out each kind of layer over all blocks, then the layers with the largest effects."""
    effect = sum(entry["effect"] for entry in results) or 1.0
    elements = sum(entry["elements"] for entry in results)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for entry in results:
        kinds.setdefault(_BLOCK.sub("", entry["layer"]), []).append(entry)
    rows = [
        _row(f"all {kind}", entries, effect, elements)
        for kind, entries in sorted(kinds.items(), key=lambda kind: -_sum(kind[1], "effect"))
    ]
    rows += [
        _row(entry["layer"], [entry], effect, elements)
        for entry in sorted(results, key=lambda entry: -entry["effect"])
        if entry["effect"] >= _SMALLEST_SHARE * effect
    ]
    header = ["quantized alone", "weights", "effect", "mean difference", "verdicts changed"]
    return markdown_table(header, rows)


def _row(name: str, entries: Sequence[dict[str, Any]], effect: float, elements: int) -> list[str]:
    alone = len(entries) == 1
    return [
        name,
        f"{_sum(entries, 'elements') / elements:.1%}",
        f"{_sum(entries, 'effect') / effect:.1%}",
        f"{entries[0]['mean_difference']:.1e}" if alone else "",
        str(entries[0]["changed_verdicts"]) if alone else "",
    ]


def _sum(entries: Sequence[dict[str, Any]], key: str) -> float:
    return float(sum(entry[key] for entry in entries))


def _name(layer: Layer) -> str:
    scopes = [name.removesuffix("/weight").rpartition("/") for name in layer.matrices]
    return f"{scopes[0][0]}/{'+'.join(last for _, _, last in scopes)}"
