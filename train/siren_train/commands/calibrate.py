"""`siren calibrate`: write thresholds into a bundle, chosen on labelled text or by hand."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from siren_runtime.bundle.ensemble import is_ensemble
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.commands.console import refuse_options, report
from siren_runtime.errors import InputError
from siren_runtime.generation.manifest import Pooled, is_grafted
from siren_runtime.text.reading import DEFAULT_MAX_BYTES
from siren_runtime.text.spans import DEFAULT_SIZES
from siren_train.data.dilution import checked_lengths
from siren_train.data.sources import parse_source

from . import options
from .by_rules import ByRules
from .calibration_shown import finish
from .extra import need_train_extra

need_train_extra()

app = typer.Typer(add_completion=False)

_SIZES = ",".join(map(str, DEFAULT_SIZES))
_EPILOG = """
Examples:

siren calibrate my-guard data.jsonl --threshold fpr:0.02

siren calibrate my-guard data.jsonl --temperature --tier block=fpr:0.01 --tier review=recall:0.95

siren calibrate my-guard data.jsonl --responses --threshold best --tier block=fpr:0.01

siren calibrate my-guard data.jsonl --temperature --spans fpr:0.02 --diluted 100,300,1000

siren calibrate my-guard --threshold 0.7

siren calibrate my-guard --tiers tiers.json --record my-head

siren calibrate my-guard data.jsonl --head categories --temperature --threshold best

siren calibrate my-guard data.jsonl --cascade --loss 0.3

siren calibrate my-guard data.jsonl --head forecast --false-alarms 0.1

siren calibrate my-grafted-generator data.jsonl --responses --threshold best

siren calibrate my-ensemble data.jsonl --responses --threshold best --spans fpr:0.05
"""


@app.command(epilog=_EPILOG)
def calibrate(
    context: typer.Context,
    bundle: Annotated[
        str,
        typer.Argument(
            help="Folder of a bundle, or of a grafted generator; its guard.json is changed. Or of "
            "an ensemble, and its ensemble.json."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SPLIT=]DATA...",
            help="Labelled text that the head was not trained on; numbers need none.",
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="Name of the head that is calibrated; default: the bundle's first."),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            help="The default threshold: best (macro-F1), fpr:RATE, precision:TARGET, "
            "recall:TARGET or a number. Of a head of labels, each label's; best is its F1."
        ),
    ] = None,
    tier: Annotated[
        list[str] | None,
        typer.Option(help="NAME=RULE, a tier whose threshold is chosen like that; repeatable."),
    ] = None,
    tiers: Annotated[
        Path | None,
        typer.Option(help='A file of tiers written by hand: {"block": 0.9, "review": 0.5}.'),
    ] = None,
    temperature: Annotated[
        bool, typer.Option("--temperature", help="Scale the scores to be honest probabilities.")
    ] = False,
    spans: Annotated[
        str | None,
        typer.Option(
            help="Thresholds of spans, with which a guard scores spans unless told not to: "
            "fpr:RATE, the share of safe rows that spans may flag, or a number."
        ),
    ] = None,
    span_sizes: Annotated[
        str,
        typer.Option(
            metavar="TOKENS,...",
            help="For --spans, their sizes. Fewer cost less where a guard reads each span by "
            "itself, as an encoder does.",
        ),
    ] = _SIZES,
    diluted: Annotated[
        str,
        typer.Option(
            metavar="TOKENS,...",
            help="For --spans, rows count alone and behind so many tokens of safe rows.",
        ),
    ] = "300",
    responses: Annotated[
        bool,
        typer.Option(
            "--responses",
            help="Choose --threshold and each --tier twice: for texts without a response by the "
            "rows that have none, and for those with one by the rest. Thresholds of --spans too, "
            "which are chosen twice as well where responses have a threshold already.",
        ),
    ] = False,
    max_rows: Annotated[
        int | None,
        typer.Option(min=2, help="Of a data set, each class alike, to calibrate on; default: all."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="HEAD",
            help="The folder of the head itself, with the weights that were exported: also keep "
            "there how it decides, so that every later export of it does so.",
        ),
    ] = None,
    cascade: Annotated[
        bool,
        typer.Option(
            "--cascade",
            help="From which scores exits may decide, or lower orders of a polynomial would, for "
            "the least cost; by itself, after the thresholds, since a new one drops these bounds.",
        ),
    ] = False,
    loss: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Macro-F1 that --cascade may lose, in points.")
    ] = 0.3,
    false_alarms: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Threshold and smoothing of streams, by themselves: rows are responses, of which "
            "most harmful ones are stopped in time while at most this share of the safe ones is. "
            "Thresholds of spans move with it.",
        ),
    ] = None,
    pool: Annotated[
        Pooled | None,
        typer.Option(help="For --false-alarms: what counts; default: conversation, both turns."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which rows to calibrate on.")] = "validation",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all.")] = None,
    text: options.TextColumns = "",
    label: options.LabelColumn = "label",
    split_column: options.SplitColumn = "split",
    id_column: options.IdColumn = "id",
    category: options.CategoryColumn = "category",
    classes: options.BundleClasses = "",
    labels: options.Labels = "",
    max_bytes: options.MaxBytes = DEFAULT_MAX_BYTES,
) -> None:
    """Choose a threshold, named tiers and a temperature, and write them into the bundle.

    `Guard.score(...).tier` then names the tier of a score. Calibrate on rows that the head has
    not seen: siren train fits train and validation rows, unless told --hold-out-validation.
    """
    if not cascade:
        refuse_options(context, ["loss"], "--cascade")
    if not (spans and data):
        refuse_options(context, ["diluted"], "--spans and labelled text")
    if not spans:
        refuse_options(context, ["span_sizes"], "--spans")
    folder = Path(options.bundle_folder(bundle))
    sources = [parse_source(argument) for argument in data or ()]
    columns_of = partial(
        options.make_columns,
        text=text,
        label=label,
        split=split_column,
        id_=id_column,
        category=category,
        classes=classes,
        max_bytes=max_bytes,
    )
    rules = ByRules(
        threshold,
        options.tier_rules(tier or []),
        spans,
        checked_lengths(span_sizes),
        checked_lengths(diluted),
        sources,
        columns_of,
        split,
        max_rows,
        responses,
        threads,
    )
    if is_grafted(folder) or is_ensemble(folder):
        refused = tiers, temperature, cascade, record, labels, pool
        if any((*refused, head if is_ensemble(folder) else None)) or false_alarms is not None:
            raise typer.BadParameter(
                "a generator or an ensemble takes --threshold, --tier, --spans and --responses "
                "alone"
            )
        _calibrate_folder(folder, head, rules)
        return
    _check_options(rules, tiers, head, record, false_alarms, pool, temperature, cascade)
    _calibrate_head(
        folder,
        head,
        _with_tiers(rules, tiers),
        labels,
        record,
        temperature=temperature,
        loss=loss if cascade else None,
        false_alarms=false_alarms,
        pool=pool or "conversation",
    )


def _check_options(
    rules: ByRules,
    tiers: Path | None,
    head: str | None,
    record: Path | None,
    false_alarms: float | None,
    pool: Pooled | None,
    temperature: bool,
    cascade: bool,
) -> None:
    """Refuse what does not go together, and rules that are none."""
    from siren_train.measure.calibrate_spans import check_rules

    others = rules.threshold, rules.tiers, tiers, temperature, rules.spans, rules.responses
    if false_alarms is not None:
        if any((*others, cascade)) or not rules.sources:
            raise typer.BadParameter(
                "--false-alarms takes labelled responses, and no other calibration"
            )
    elif pool is not None:
        raise typer.BadParameter("--pool goes with --false-alarms")
    elif cascade:
        if any((*others, head, record)) or not rules.sources:
            raise typer.BadParameter("--cascade takes labelled text, and no other calibration")
    else:
        _check_use(rules, tiers, temperature)
    if rules.responses and not (rules.sources and rules.threshold and not tiers):
        raise typer.BadParameter("--responses takes labelled text, --threshold, and --tier if any")
    try:
        check_rules(rules.threshold, rules.tiers, rules.spans)
    except InputError as error:
        if rules.sources:
            raise
        raise typer.BadParameter(str(error)) from None  # as numbers that are none are refused


def _check_use(rules: ByRules, tiers: Path | None, temperature: bool) -> None:
    if tiers is not None and rules.tiers:
        raise typer.BadParameter("give either --tier or --tiers")
    if not (rules.threshold or rules.tiers or tiers or temperature or rules.spans):
        raise typer.BadParameter(
            "give --threshold, --tier, --tiers, --temperature, --spans, --cascade or --false-alarms"
        )


# What calibrates is imported where it runs, so that siren --help need not wait for scikit-learn.


def _with_tiers(rules: ByRules, tiers: Path | None) -> ByRules:
    from siren_train.measure.tiers import read_tiers

    return rules if tiers is None else replace(rules, written=read_tiers(tiers))


def _calibrate_folder(folder: Path, head: str | None, rules: ByRules) -> None:
    """Calibrate a grafted generator or an ensemble."""
    from .calibrate_ensemble import calibrate_ensemble
    from .calibrate_generator import calibrate_generator

    if is_grafted(folder):
        calibrate_generator(folder, head, rules)
    else:
        calibrate_ensemble(folder, rules)


def _calibrate_head(
    folder: Path,
    head: str | None,
    rules: ByRules,
    labels: str,
    record: Path | None,
    *,
    temperature: bool,
    loss: float | None,
    false_alarms: float | None,
    pool: Pooled,
) -> None:
    """Calibrate a head of a bundle in the one way that is asked for.

    Args:
        head: None is the primary one.
        labels: as `options.make_columns` takes them.
        loss: of the bounds of a cascade; None is no such calibration.
        false_alarms, pool: of streams; likewise.
    """
    from siren_export.heads.registry import check_same_head

    from .calibrate_alarms import calibrate_alarms
    from .calibrate_bundle import calibrate_bundle
    from .calibrate_cascade import calibrate_exits, calibrate_orders
    from .calibrate_labels import calibrate_labels

    bundle = load_bundle(folder)
    manifest = bundle.manifest
    name = manifest.primary if head is None else head
    old = manifest.decision(name)
    if record is not None:
        weights = manifest.weights_sha256.get(name)
        check_same_head(record, name, manifest.heads[name], weights)
        if weights is None:
            report(
                f"{folder}: was exported before bundles said of which weights they are; the head "
                f"of {record} is like {name!r}, and taken for it"
            )
    has_labels = manifest.heads[name].has_labels
    if labels and (not has_labels or loss is not None or false_alarms is not None):
        raise typer.BadParameter("--labels goes with a head of labels")
    is_trajectory = manifest.is_trajectory
    own = options.labels(manifest)
    columns = rules.columns_of(bundle_classes=own, labels=labels, trajectories=is_trajectory)
    options.check_labels(columns.labels, manifest.heads.values())
    of_rows = rules.sources, columns, rules.split, rules.max_rows, rules.threads
    if false_alarms is not None:
        finish(record, old, calibrate_alarms(bundle, name, false_alarms, *of_rows, pool))
    elif loss is not None:
        chosen = calibrate_orders if manifest.head.orders else calibrate_exits
        chosen(bundle, loss, *of_rows)
    elif columns.trajectories and (rules.spans or rules.responses or columns.text):
        raise InputError(
            f"{folder}: scores trajectories of agents, of which rows have messages, tools and a "
            "label: there is no --spans, --responses and --text"
        )
    elif has_labels:
        if any((rules.tiers, rules.written, rules.spans, rules.max_rows, rules.responses)):
            raise typer.BadParameter(
                f"the head {name!r} has labels: --threshold and --temperature are each label's; "
                "tiers, spans, --responses and --max-rows are for heads of classes"
            )
        of_labels = rules.threshold, temperature, rules.sources, columns, rules.split, rules.threads
        finish(record, old, calibrate_labels(bundle, name, *of_labels))
    else:
        calibrate_bundle(bundle, name, temperature, columns, rules, record)
