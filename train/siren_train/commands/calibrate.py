"""`siren calibrate`: write thresholds into a bundle, chosen on labelled text or by hand."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from siren_runtime.bundle.ensemble import is_ensemble
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.commands.console import refuse_options
from siren_runtime.errors import InputError
from siren_runtime.generation.manifest import is_grafted
from siren_runtime.text.reading import DEFAULT_MAX_BYTES
from siren_train.data.dilution import checked_lengths
from siren_train.data.sources import parse_source

from . import options
from .by_rules import ByRules
from .calibration_shown import finish
from .extra import need_train_extra

need_train_extra()

app = typer.Typer(add_completion=False)

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
            "recall:TARGET or a number. Of a head of labels, each label's."
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
            help="Thresholds of spans of 32, 64 and 128 tokens, with which a guard scores spans "
            "unless told not to: fpr:RATE, the share of safe rows that spans may flag, or a number."
        ),
    ] = None,
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
            help="The folder of the head itself: also keep there how it decides, so that every "
            "later export of it does so.",
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
            "most harmful ones are stopped in time while at most this share of the safe ones is.",
        ),
    ] = None,
    pool: Annotated[
        Literal["conversation", "response"] | None,
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
    # Only here, so that siren --help need not wait for scikit-learn.
    from siren_export.heads.registry import check_same_head
    from siren_train.measure.calibrate import read_tiers
    from siren_train.measure.calibrate_spans import check_rules

    from .calibrate_bundle import calibrate_bundle
    from .calibrate_ensemble import calibrate_ensemble
    from .calibrate_generator import calibrate_generator

    if not cascade:
        refuse_options(context, ["loss"], "--cascade")
    if not (spans and data):
        refuse_options(context, ["diluted"], "--spans and labelled text")
    folder = Path(options.bundle_folder(bundle))
    sources = [parse_source(argument) for argument in data or ()]
    of_rows = text, label, split_column, id_column, category, classes
    columns_of = partial(options.make_columns, *of_rows, max_bytes=max_bytes)
    rules = threshold, options.tier_rules(tier or []), spans, checked_lengths(diluted)
    by_rules = ByRules(*rules, sources, columns_of, split, max_rows, responses, threads)
    if is_grafted(folder) or is_ensemble(folder):
        refused = tiers, temperature, cascade, record, labels, pool
        if any((*refused, head if is_ensemble(folder) else None)) or false_alarms is not None:
            raise typer.BadParameter(
                "a generator or an ensemble takes --threshold, --tier, --spans and --responses "
                "alone"
            )
        if is_grafted(folder):
            calibrate_generator(folder, head, by_rules)
        else:
            calibrate_ensemble(folder, by_rules)
        return
    if false_alarms is not None:
        if any((threshold, tier, tiers, temperature, spans, cascade, responses)) or not data:
            raise typer.BadParameter(
                "--false-alarms takes labelled responses, and no other calibration"
            )
    elif pool is not None:
        raise typer.BadParameter("--pool goes with --false-alarms")
    elif cascade:
        others = threshold, tier, tiers, temperature, spans, responses, head, record
        if any(others) or not data:
            raise typer.BadParameter("--cascade takes labelled text, and no other calibration")
    else:
        _check_use(threshold, tier, tiers, temperature, spans)
    if responses and not (data and threshold and not tiers):
        raise typer.BadParameter("--responses takes labelled text, --threshold, and --tier if any")
    try:
        check_rules(threshold, by_rules.tiers, spans)
    except InputError as error:
        if data:
            raise
        raise typer.BadParameter(str(error)) from None  # as numbers that are none are refused
    if tiers is not None:
        by_rules = replace(by_rules, written=read_tiers(tiers))
    opened = load_bundle(folder)
    head = opened.manifest.primary if head is None else head
    old = opened.manifest.decision(head)
    if record is not None:
        check_same_head(record, head, opened.manifest.heads[head])
    has_labels = opened.manifest.heads[head].activation == "sigmoid"
    if labels and (not has_labels or cascade or false_alarms is not None):
        raise typer.BadParameter("--labels goes with a head of labels")
    is_trajectory = opened.manifest.task == "trajectory"
    columns = columns_of(options.labels(opened.manifest), labels, trajectories=is_trajectory)
    if false_alarms is not None:
        from .calibrate_alarms import calibrate_alarms

        of_split = sources, columns, split, max_rows
        pooled = pool or "conversation"
        decision = calibrate_alarms(
            folder, head, false_alarms, *of_split, pool=pooled, threads=threads
        )
        finish(record, old, decision)
        return
    if cascade:
        from .calibrate_cascade import calibrate_exits, calibrate_orders

        chosen = calibrate_orders if opened.manifest.head.orders else calibrate_exits
        chosen(opened, loss, sources, columns, split, max_rows, threads)
        return
    if columns.trajectories and (spans or responses or text):
        raise InputError(
            f"{folder}: scores trajectories of agents, of which rows have messages, tools and a "
            "label: there is no --spans, --responses and --text"
        )
    if has_labels:
        if tier or tiers or spans or max_rows or responses:
            raise typer.BadParameter(
                f"the head {head!r} has labels: --threshold and --temperature are each label's; "
                "tiers, spans, --responses and --max-rows are for heads of classes"
            )
        from .calibrate_labels import calibrate_labels

        calibrate_labels(opened, head, threshold, temperature, sources, columns, split, threads)
        finish(record, old, load_bundle(folder).manifest.decision(head))
        return
    calibrate_bundle(opened, head, temperature, columns, by_rules, record)


def _check_use(
    threshold: str | None,
    tier: list[str] | None,
    tiers: Path | None,
    temperature: bool,
    spans: str | None,
) -> None:
    if tiers is not None and tier:
        raise typer.BadParameter("give either --tier or --tiers")
    if not (threshold or tier or tiers or temperature or spans):
        raise typer.BadParameter(
            "give --threshold, --tier, --tiers, --temperature, --spans, --cascade or --false-alarms"
        )
