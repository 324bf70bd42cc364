"""What each part of the recipe is worth: heads with one part changed, side by side.

Each variant is one MLP of the chosen configuration, fitted on the train rows and measured on the
validation rows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from siren_runtime.errors import InputError
from siren_train.measure.metrics import macro_f1_by_dataset
from siren_train.store.features import FeatureSet

from .head import HeadConfig, fit_head, head_logits
from .probe import Probe
from .search import Choice
from .selection import gather, select_layers
from .settings import LayerWeighting
from .workers import worker_pool

Progress = Callable[[str, int, int], None]


class Variant(msgspec.Struct, frozen=True):
    """A head to try: the layers it may read, the share of |weight| it selects, the weighting."""

    group: str
    name: str
    layers: tuple[int, ...]
    share: float
    weighting: LayerWeighting


class AblationResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A variant's macro-F1 on the validation rows. `features` is how many channels it read."""

    group: str
    name: str
    features: int
    macro_f1: float
    by_dataset: dict[str, float]


def ablation_variants(
    layers: int, choice: Choice, weighting: LayerWeighting, shares: Sequence[float]
) -> list[Variant]:
    """Return the variants: the chosen head, layer weightings, shares, depths, single layers."""
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
    progress: Progress = lambda stage, done, total: None,
) -> list[AblationResult]:
    """Measure the variants that `history` lacks, `workers` at a time; return all, in order.

    Raises:
        InputError: `history` is damaged.
    """
    done = _read_history(history)

    def measure(variant: Variant) -> AblationResult:
        layers = select_layers(
            [probes[layer] for layer in variant.layers],
            share=variant.share,
            weighting=variant.weighting,
        )
        head = fit_head(train, layers, config, seed=seed)
        score = macro_f1_by_dataset(
            validation.labels,
            head_logits(head, gather(validation, layers)).argmax(axis=1),
            validation.datasets,
            validation.names,
        )
        width = head[0].weight.shape[1]
        return AblationResult(variant.group, variant.name, width, score.mean, score.by_dataset)

    progress("ablation", len(done), len(variants))
    with worker_pool(workers) as pool, history.open("ab") as file:
        for result in pool.map(measure, variants[len(done) :]):
            done.append(result)
            file.write(msgspec.json.encode(result) + b"\n")
            file.flush()
            progress("ablation", len(done), len(variants))
    return done


def ablation_markdown(results: Sequence[AblationResult]) -> str:
    """Return the table of an ablation."""
    names = list(results[0].by_dataset)
    lines = [
        "# Ablation",
        "",
        "Macro-F1 on the validation rows of one MLP fitted on the train rows.",
        "",
        f"| part | variant | channels | mean | {' | '.join(names)} |",
        "| --- " * (len(names) + 4) + "|",
    ]
    lines += [
        f"| {result.group} | {result.name} | {result.features} | {result.macro_f1:.3f} | "
        + " | ".join(f"{result.by_dataset[name]:.3f}" for name in names)
        + " |"
        for result in results
    ]
    return "\n".join(lines) + "\n"


def _read_history(path: Path) -> list[AblationResult]:
    """Read the measured variants; a last line that a kill cut short is dropped from the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    try:
        return [msgspec.json.decode(line, type=AblationResult) for line in whole.splitlines()]
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: a damaged ablation history ({error}); remove it") from None
