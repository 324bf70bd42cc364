"""`siren train`: a head from a feature store."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from siren_export.heads.base import DECISION_FILE
from siren_export.heads.exits import parse_depths
from siren_export.heads.selected import MeanPooling
from siren_runtime.bundle.files import write_whole
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import refuse_options
from siren_runtime.commands.console import report as say
from siren_runtime.errors import InputError
from siren_train.fit.settings import LayerWeighting, Settings
from siren_train.store.store import FeatureStore, Target

from .extra import need_train_extra

need_train_extra()

app = typer.Typer(add_completion=False)
T = TypeVar("T")

_EPILOG = """
Examples:

siren train features -o my-head --trials 24

siren train features-int8 -o my-head --noise features-fp32

siren train features -o my-labels --head categories

siren train features -o my-labels --head categories --probes my-head/.work --share 0.8

siren train features -o my-polynomial --head polynomial --orders 4

siren train features -o my-head --exits 2,4

siren train features -o my-forecast --head forecast --neurons 384

siren train features -o my-agent-head --head trajectory
"""


_SEARCHED: tuple[Target, ...] = ("harm", "categories")
_BY_PROBES: tuple[Target, ...] = (*_SEARCHED, "polynomial", "forecast")
# Options that not every head has, and which do.
_HEADS_OF: dict[str, tuple[Target, ...]] = {
    "pooling": _BY_PROBES,
    "orders": ("polynomial",),
    "rank": ("polynomial",),
    "neurons": ("forecast",),
    "hidden": (*_SEARCHED, "forecast"),
    "layer": ("polynomial", "forecast", "trajectory"),
    "openai": ("categories",),
    "probes": ("categories",),
    "noise": _SEARCHED,
    "share": (*_SEARCHED, "polynomial"),
    "layer_weights": _BY_PROBES,
    "exits": ("harm",),
    "trials": _SEARCHED,
    "members": (*_SEARCHED, "forecast"),
    "hold_out_validation": (*_SEARCHED, "trajectory"),
    "half": _SEARCHED,
    "held_out": _SEARCHED,
    "ablate": _SEARCHED,
}


@app.command(epilog=_EPILOG)
def train(
    context: typer.Context,
    stores: Annotated[
        list[Path],
        typer.Argument(
            metavar="STORE...",
            help="A feature store made by siren extract; several of the same rows in different "
            "precisions make a head for all of these.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The head's folder.")],
    pooling: Annotated[MeanPooling, typer.Option(help="Which of the store's features.")] = (
        "residual_mean"
    ),
    head: Annotated[
        Target,
        typer.Option(
            help="What the head tells: harm, by the label column; categories, each a label of its "
            "own, of a store that was extracted with --labels; harm by a polynomial, whose orders "
            "can be read one by one; harm of what comes, of a store that was extracted with "
            "--prefixes; or harm of trajectories, of a store that was extracted with "
            "--trajectories."
        ),
    ] = "harm",
    orders: Annotated[int, typer.Option(min=1, max=16, help="Of a polynomial.")] = 3,
    rank: Annotated[int, typer.Option(min=1, help="Directions of its orders beyond 1.")] = 32,
    neurons: Annotated[int, typer.Option(min=1, help="That a forecast head reads, at most.")] = 384,
    hidden: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="Width of the first hidden layer; repeat it to let the search choose; default: "
            "64, 128, 256. A forecast head has one at most: 0, the default there, is linear.",
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Read one layer; default: of a polynomial or forecast all, of trajectories the "
            "one that tells the validation rows apart best.",
        ),
    ] = None,
    openai: Annotated[
        Path | None,
        typer.Option(
            help='Which labels cover OpenAI\'s moderation keys: {"hate": ["slurs"]}, for --head '
            "categories; default: by the labels' names."
        ),
    ] = None,
    probes: Annotated[
        Path | None,
        typer.Option(
            metavar="WORK",
            help="The work folder of another head's training on the same store: its probes choose "
            "what is read, so that both heads read the same neurons; for --head categories.",
        ),
    ] = None,
    noise: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE",
            help="A feature store of some of the same texts by another engine of the backbone, "
            "such as fp32 beside int8: the head learns to score alike whatever these differ by.",
        ),
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(
            help="Share of a probe's |weight| to select; repeat it to let the search choose; "
            "default: 0.6, 0.8, 0.9, 1. A polynomial has one: 0.6, the default there."
        ),
    ] = None,
    layer_weights: Annotated[
        LayerWeighting, typer.Option(help="By each layer's probe, or all alike.")
    ] = "adaptive",
    max_layer: Annotated[
        int | None, typer.Option(min=1, help="Read only the first so many layers: faster.")
    ] = None,
    exits: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCKS,...",
            help="Also train heads that read only the first so many blocks, which may decide clear "
            "texts (siren export --exits); into exits/BLOCKS of the head's folder.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Of the head's search.")] = 16,
    members: Annotated[
        int, typer.Option(min=1, help="MLPs that the head averages; a linear forecast is one map.")
    ] = 4,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="The head's default.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of folds, search and head.")] = 0,
    hold_out_validation: Annotated[
        bool,
        typer.Option(
            "--hold-out-validation", help="Fit the head on train rows alone, to calibrate it later."
        ),
    ] = False,
    half: Annotated[bool, typer.Option(help="Store the head in float16.")] = True,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Also measure rows with heads that did not see their source, or their data set.",
        ),
    ] = False,
    ablate: Annotated[
        bool,
        typer.Option(
            "--ablate",
            help="Also measure single layers, layer weights, shares and depths, in one table.",
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; the head does not depend on it.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Where finished stages are kept; default: .work in the head's folder."),
    ] = None,
) -> None:
    """Train a SIREN head: probes, selection, search, final fit on train and validation rows.

    A run that was stopped goes on where it was when the same command is given again. The test
    rows are not read; score them with siren evaluate.
    """
    _check_options(context, head, hidden or (), orders)
    if share and not all(0 < value <= 1 for value in share):
        raise typer.BadParameter("--share must lie above 0, and at most 1")
    if probes is not None and (ablate or held_out):
        raise typer.BadParameter("--probes is for one head, without --ablate and --held-out")
    if head == "forecast" and len(hidden or ()) > 1:
        raise typer.BadParameter("--hidden of a forecast head is one")
    if head == "polynomial" and len(share or ()) > 1:
        raise typer.BadParameter("--share of a polynomial is one")
    if head in _SEARCHED and 0 in (hidden or ()):
        raise typer.BadParameter("--hidden must be 1 or more: these heads are MLPs")
    depths = () if exits is None else parse_depths(exits)
    settings = Settings(
        pooling="residual_last" if head == "trajectory" else pooling,
        head=head,
        shares=tuple(share) if share else Settings().shares,
        hidden=tuple(hidden) if hidden and head in _SEARCHED else Settings().hidden,
        weighting=layer_weights,
        max_layer=max_layer,
        trials=trials,
        members=members,
        seed=seed,
        threshold=threshold,
        half=half,
        hold_out_validation=hold_out_validation,
    )
    opened = [FeatureStore.open(store) for store in stores]
    layers = min(opened[0].manifest.layers, max_layer or opened[0].manifest.layers)
    if depths and depths[-1] >= layers:
        raise typer.BadParameter(f"--exits {exits}: the head itself reads {layers} blocks")
    run = _Run(opened, output, work or output / ".work", settings, workers or os.cpu_count() or 1)
    if head == "trajectory":
        _train_trajectory(run, layer)
    elif head == "forecast":
        _train_forecast(run, layer, neurons, hidden[0] if hidden else 0)
    elif head == "polynomial":
        _train_polynomial(run, layer, orders, rank)
    else:
        beside = None if noise is None else FeatureStore.open(noise)
        _train_searched(run, openai, probes, beside, depths, held_out=held_out, ablate=ablate)
    if (output / DECISION_FILE).exists():
        say(f"{output / DECISION_FILE}: is of these weights, so exports still decide by it")


@dataclass(frozen=True)
class _Run:
    """What a head of any kind is trained with."""

    stores: list[FeatureStore]
    output: Path
    work: Path
    settings: Settings
    workers: int

    def with_bars(self, pipeline: Callable[..., T], **options: Any) -> T:
        """Call the `train` of a pipeline that keeps its stages in a work folder."""
        with Bars() as bars:
            return pipeline(
                self.stores,
                self.output,
                self.work,
                self.settings,
                workers=self.workers,
                progress=bars.update,
                **options,
            )


# The pipelines are imported where they run, so that siren --help need not wait for torch.


def _train_trajectory(run: _Run, layer: int | None) -> None:
    from siren_train.fit import trajectory_pipeline

    with Bars() as bars:
        best = trajectory_pipeline.train(
            run.stores, run.output, run.settings, layer=layer, progress=bars.update
        )
    say(f"{run.output}: layer {best.layer}, validation macro-F1 {best.validation.mean:.4f}")


def _train_forecast(run: _Run, layer: int | None, neurons: int, hidden: int) -> None:
    from siren_train.fit import forecast_pipeline

    found = run.with_bars(forecast_pipeline.train, neurons=neurons, hidden=hidden, layer=layer)
    say(
        f"{run.output}: {found.parameters:,} parameters, validation cross-entropy "
        f"{found.cross_entropy:.4f}"
    )


def _train_polynomial(run: _Run, layer: int | None, orders: int, rank: int) -> None:
    from siren_train.fit import polynomial_pipeline

    reports = run.with_bars(polynomial_pipeline.train, layer=layer, orders=orders, rank=rank)
    found = ", ".join(f"{r.order}: {r.validation.mean:.4f}" for r in reports)
    say(f"{run.output}: validation macro-F1 by order {found}")


def _train_searched(
    run: _Run,
    openai: Path | None,
    probes: Path | None,
    noise: FeatureStore | None,
    depths: Sequence[int],
    *,
    held_out: bool,
    ablate: bool,
) -> None:
    """Train a head of harm or of labels, and what is asked for beside it."""
    from siren_train.fit import pipeline
    from siren_train.fit.ablate import ablation_markdown
    from siren_train.fit.exits import train_exits
    from siren_train.fit.held_out import check_held_out, held_out_markdown
    from siren_train.fit.plots import plot_ablation, plot_layers
    from siren_train.fit.report import write_report

    stores, output, work, settings = run.stores, run.output, run.work, run.settings
    if held_out:
        check_held_out(stores[0], settings)
    with Bars() as bars:
        shared: dict[str, Any] = {
            "noise": noise,
            "workers": run.workers,
            "progress": bars.update,
        }
        report = pipeline.train(
            stores,
            output,
            work,
            settings,
            openai=_openai(openai, stores[0]) if settings.head == "categories" else None,
            probes_of=probes,
            **shared,
        )
        write_report(report, output)
        plot_layers(report, output / "layers.png")
        if ablate:
            results = pipeline.ablate(stores, work, settings, **shared)
            write_whole(output / "ablation.md", ablation_markdown(results).encode(), InputError)
            plot_ablation(results, output / "ablation.png")
        if held_out:
            unseen = pipeline.held_out(stores, work, settings, **shared)
            write_whole(output / "held-out.md", held_out_markdown(unseen).encode(), InputError)
        exit_scores = train_exits(stores, output, work, settings, depths, **shared)
    say(f"{output}: cross-validated macro-F1 {report.cross_validation:.4f}")
    for depth, score in exit_scores.items():
        say(f"exit behind {depth} blocks: cross-validated macro-F1 {score:.4f}")


def _check_options(
    context: typer.Context, head: Target, hidden: Sequence[int], orders: int
) -> None:
    """Refuse options that a head of this kind would leave unread."""
    for name, heads in _HEADS_OF.items():
        if head not in heads:
            refuse_options(context, [name], f"--head {' or '.join(heads)}")
    if head == "forecast" and not any(hidden):
        refuse_options(context, ["members"], "--hidden, where --head is forecast")
    if head == "polynomial" and orders == 1:
        refuse_options(context, ["rank"], "--orders above 1")


def _openai(path: Path | None, store: FeatureStore) -> dict[str, list[str]]:
    from siren_train.fit.openai_keys import read_table, table_by_names

    labels = store.manifest.labels
    return table_by_names(labels) if path is None else read_table(path, labels)
