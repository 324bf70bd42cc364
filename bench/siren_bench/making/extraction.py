"""Pooled hidden states of every layer: our extractor bundle against transformers, interleaved."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siren_bench.records.record import markdown_table
from siren_bench.records.samples import in_turns, paired_ratio
from siren_bench.subjects.synthetic import write_artifact
from siren_export.export import export_bundle
from siren_export.families.registry import parse_config
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import Checkpoint
from siren_export.tune.timing import settle
from siren_runtime import Guard
from siren_runtime.bundle.manifest import MANIFEST_FILE
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_runtime.text.rules import clean

Features = NDArray[np.float32]  # [texts, layers, channels]
Extractor = Callable[[Sequence[str]], Features]

BATCH = 16  # texts that transformers takes at once, padded to the longest


def extractor_bundle(checkpoint: Checkpoint, backbone: Path, folder: Path, max_length: int) -> Path:
    """Return the bundle whose features are every channel of every layer, made the first time."""
    bundle = folder / f"extractor-{max_length}"
    if not (bundle / MANIFEST_FILE).exists():
        config = parse_config(checkpoint.config, checkpoint.source)
        channels = {layer: np.arange(config.hidden_size) for layer in range(config.blocks)}
        head = folder / "extractor-head"
        write_artifact(head, backbone, channels, (), max_length=max_length)
        export_bundle(load_artifact(head), checkpoint, bundle)
    return bundle


def our_extractor(bundle: Path, threads: int) -> Extractor:
    """Load the extractor bundle; it gives what siren extract stores."""
    guard = Guard.load(bundle, backend="cpu", threads=threads, **AS_LLM_SIREN)
    layers = len(guard.manifest.head.layers)

    def extract(texts: Sequence[str]) -> Features:
        results = guard.score_batch(texts, features=True)
        rows = [np.asarray(result.features).reshape(layers, -1) for result in results]
        return np.stack(rows)

    return extract


def transformers_extractor(backbone: Path, threads: int, max_length: int) -> Extractor:
    """Load the backbone with transformers: float32, its hidden states averaged over real tokens.

    As SIREN reads them, `hidden_states[l + 1]` of block l. Texts of similar length share a batch.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModel.from_pretrained(backbone, dtype=torch.float32).eval()

    def extract(texts: Sequence[str]) -> Features:
        cleaned = [clean(text) for text in texts]
        lengths = [len(ids) for ids in tokenizer(cleaned)["input_ids"]]
        order = sorted(range(len(texts)), key=lambda index: lengths[index])
        rows: dict[int, Features] = {}
        for start in range(0, len(order), BATCH):
            indices = order[start : start + BATCH]
            inputs = tokenizer(
                [cleaned[index] for index in indices],
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
            with torch.inference_mode():
                states = model(**inputs, output_hidden_states=True).hidden_states[1:]
                mask = inputs["attention_mask"][:, :, None].float()
                pooled = [(state * mask).sum(1) / mask.sum(1) for state in states]
            rows.update(zip(indices, torch.stack(pooled, dim=1).numpy(), strict=True))
        return np.stack([rows[index] for index in range(len(texts))])

    return extract


def measure_extraction(
    extractors: Mapping[str, Extractor],
    texts: Sequence[str],
    rounds: int,
    *,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Time every extractor on all texts, one after the other in each round, after a warm-up.

    Args:
        extractors: By name; the first is the one that the others are compared with.
        progress: Called after each round, the warm-up included.

    Returns:
        One entry an extractor: raw samples and their median in seconds, texts a second, the
        median ratio of its time to the first's, and the largest relative difference of its
        features from the first's: of a text and layer, |difference| / |features|, Euclidean.
    """
    samples: dict[str, list[float]] = {name: [] for name in extractors}
    features: dict[str, Features] = {}
    names = list(extractors)
    for number, turn in in_turns(names, rounds):
        for name in turn:
            settle()
            start = time.perf_counter()
            features[name] = extractors[name](texts)
            if number >= 0:
                samples[name].append(time.perf_counter() - start)
        progress("timing", number + 2, rounds + 1)
    ours = features[names[0]]
    return [
        {
            "extractor": name,
            "texts": len(texts),
            "median_s": median(samples[name]),
            "texts_per_s": len(texts) / median(samples[name]),
            "ratio": paired_ratio(samples[name], samples[names[0]]),
            "max_relative_difference": largest_relative_difference(features[name], ours),
            "samples_s": samples[name],
        }
        for name in names
    ]


def largest_relative_difference(found: Features, expected: Features) -> float:
    """Return the largest |found - expected| / |expected| over texts and layers, Euclidean."""
    difference = np.linalg.norm(found.astype(np.float64) - expected, axis=2)
    return float((difference / np.linalg.norm(expected, axis=2)).max())


def extraction_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out speed, ratio to the first extractor, and difference of features."""
    header = ["extractor", "texts/s", "seconds for all", "time", "largest relative difference"]
    rows = [
        [
            entry["extractor"],
            f"{entry['texts_per_s']:.1f}",
            f"{entry['median_s']:.2f}",
            f"{entry['ratio']:.2f}x",
            f"{entry['max_relative_difference']:.1e}",
        ]
        for entry in results
    ]
    return markdown_table(header, rows)
