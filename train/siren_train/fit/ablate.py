"""What each part of the recipe is worth: heads with one part changed, side by side.

Each variant is one MLP of the configuration that the search found, fitted on the train rows and
measured on the validation rows.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from siren_runtime.bundle.progress import Progress, silent
from siren_train.measure.metrics import macro_f1_by_dataset
from siren_train.measure.table import markdown_table
from siren_train.store.features import FeatureSet
from siren_train.store.journal import Journal

from .head import HeadConfig, fit_head, head_logits
from .probe import Probe
from .search import Choice
from .selection import gather, select_layers
from .settings import LayerWeighting
from .workers import worker_pool


class Variant(msgspec.Struct, frozen=True):
    """A head to measure.

    Attributes:
        group: the part that is changed.
        name: how it is changed.
        layers: 0-based, those that the head may read.
        share: of each probe's |weight|, which the channels that are selected hold.
        weighting: how layers are weighted.
    """

    group: str
    name: str
    layers: tuple[int, ...]
    share: float
    weighting: LayerWeighting


class AblationResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A variant's macro-F1 on the validation rows. `features` is how many features it reads."""

    group: str
    name: str
    features: int
    macro_f1: float
    by_dataset: dict[str, float]


def ablation_variants(
    layers: int, choice: Choice, weighting: LayerWeighting, shares: Sequence[float]
) -> list[Variant]:
    """Return the variants to measure.

    They are the head as the search found it, and then heads with another layer weighting, another
    share, fewer layers, or one layer alone.

    Args:
        layers: how many there are.
        choice, weighting: of the head as it is.
        shares: to try.
    """
    every = tuple(range(layers))
    weightings: tuple[LayerWeighting, ...] = ("adaptive", "uniform")
    return [
        Variant("head", "as chosen", every, choice.share, weighting),
        *(Variant("layer weights", name, every, choice.share, name) for name in weightings),
        *(Variant("share", f"{share:g}", every, share, weighting) for share in sorted(shares)),
        *(
            Variant("depth", f"first {depth}", every[:depth], choice.share, weighting)
            for depth in range(1, layers + 1)
        ),
        *(
            Variant("single layer", f"layer {layer}", (layer,), choice.share, weighting)
            for layer in every
        ),
    ]


def ablate(
    train: FeatureSet,
    validation: FeatureSet,
    probes: Sequence[Probe],
    variants: Sequence[Variant],
    config: HeadConfig,
    history: Path,
    *,
    seed: int,
    workers: int = 1,
    progress: Progress = silent,
) -> list[AblationResult]:
    """Measure the variants that `history` lacks, and return the results of all, in order.

    Args:
        probes: of every layer.
        config: of every variant's MLP.
        history: a file of results, one JSON object a line, which is added to.
        workers: variants that are measured at once.

    Raises:
        InputError: `history` is damaged.
    """

    def measure(variant: Variant) -> AblationResult:
        layers = select_layers(
            [probes[layer] for layer in variant.layers],
            share=variant.share,
            weighting=variant.weighting,
        )
        head = fit_head(train, layers, config, seed=seed)
        score = macro_f1_by_dataset(
            validation.labels,
            validation.decided(
                head_logits(head, gather(validation.pooled, layers)), validation.labels
            ),
            validation.datasets,
            validation.names,
        )
        width = head[0].weight.shape[1]
        return AblationResult(variant.group, variant.name, width, score.mean, score.by_dataset)

    with Journal(history, AblationResult, "remove it") as done, worker_pool(workers) as pool:
        progress("ablation", len(done.entries), len(variants))
        for result in pool.map(measure, variants[len(done.entries) :]):
            done.add(result)
            progress("ablation", len(done.entries), len(variants))
    return done.entries


def ablation_markdown(results: Sequence[AblationResult]) -> str:
    """Return the table of an ablation, as Markdown."""
    names = list(results[0].by_dataset)
    rows = [
        [
            result.group,
            result.name,
            str(result.features),
            f"{result.macro_f1:.3f}",
            *(f"{result.by_dataset[name]:.3f}" for name in names),
        ]
        for result in results
    ]
    lines = [
        "# Ablation",
        "",
        "Macro-F1 on the validation rows of one MLP fitted on the train rows.",
        "",
        *markdown_table(("part", "variant", "channels", "mean", *names), rows),
    ]
    return "\n".join(lines) + "\n"
