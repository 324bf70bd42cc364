"""`siren calibrate`: write thresholds into a bundle, chosen on labelled text or by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siren_runtime.backends.base import Backend
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.reader import Bundle, load_bundle
from siren_runtime.commands.console import report
from siren_runtime.errors import InputError
from siren_runtime.scoring.engines import Request, open_backend
from siren_train.data.rows import Columns
from siren_train.data.sources import Source, parse_source

from . import options
from .bars import Bars
from .extra import need_train_extra

need_train_extra()

if TYPE_CHECKING:
    from siren_train.measure.evaluate import Scores

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

siren calibrate my-guard data.jsonl --threshold fpr:0.02

siren calibrate my-guard data.jsonl --temperature --tier block=fpr:0.01 --tier review=recall:0.95

siren calibrate my-guard --threshold 0.7

siren calibrate my-guard --tiers tiers.json
"""


@app.command(epilog=_EPILOG)
def calibrate(
    bundle: Annotated[str, typer.Argument(help="Folder of a bundle; its manifest is changed.")],
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SPLIT=]DATA...",
            help="Labelled text that the head was not trained on; numbers need none.",
        ),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            help="The default threshold: best (macro-F1), fpr:RATE, precision:TARGET, "
            "recall:TARGET or a number."
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
    split: Annotated[str, typer.Option(help="Which rows to calibrate on.")] = "validation",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all.")] = None,
    text: options.TextColumns = "",
    label: options.LabelColumn = "label",
    split_column: options.SplitColumn = "split",
    id_column: options.IdColumn = "id",
    category: options.CategoryColumn = "category",
    classes: options.BundleClasses = "",
) -> None:
    """Choose a threshold, named tiers and a temperature, and write them into the bundle.

    `Guard.score(...).tier` then names the tier of a score. Calibrate on rows that the head has
    not seen: siren train fits train and validation rows, unless told --hold-out-validation.
    """
    # Only here, so that siren --help need not wait for scikit-learn.
    from siren_train.measure.calibrate import (
        find_threshold,
        make_tiers,
        read_tiers,
        tempered_guard,
        write_calibration,
    )
    from siren_train.measure.evaluate import score_rows

    _check_use(threshold, tier, tiers, temperature)
    rules = _rules(tier or [])
    folder = Path(options.bundle_folder(bundle))
    if not data:
        if temperature:
            raise typer.BadParameter("labelled text is needed to fit a temperature")
        stated = {name: _stated(rule) for name, rule in rules.items()}
        by_name = make_tiers(stated, "--tier") if stated else None
        manifest = write_calibration(
            folder,
            threshold=_stated(threshold) if threshold else None,
            tiers=read_tiers(tiers) if tiers is not None else by_name,
        )
        report(f"{folder}: {_described(manifest)}")
        return

    opened = load_bundle(folder)
    if temperature and opened.manifest.head.classes != 2:
        raise InputError(f"{folder}: temperature scaling is for heads of two classes")
    backend = open_backend(opened, Request(threads=threads))
    guard = tempered_guard(opened, backend, opened.manifest.temperature)
    columns = options.make_columns(
        text, label, split_column, id_column, category, classes, options.labels(guard)
    )
    sources = [parse_source(argument) for argument in data]
    with Bars() as bars:
        if temperature:
            new_temperature, scores = _fit_temperature(
                opened, backend, sources, columns, split, bars
            )
        else:
            new_temperature, scores = None, score_rows(guard, sources, columns, split, bars.update)
    new_tiers = read_tiers(tiers) if tiers is not None else None
    if rules:
        found = {name: find_threshold(scores, rule) for name, rule in rules.items()}
        new_tiers = make_tiers(found, "--tier")
    manifest = write_calibration(
        folder,
        threshold=find_threshold(scores, threshold) if threshold else None,
        tiers=new_tiers,
        temperature=new_temperature,
    )
    _print(manifest, scores, split)
    if new_temperature is not None:
        typer.echo(f"temperature: {new_temperature:.3f}")


def _stated(rule: str) -> float:
    """The number that a rule is, which needs no rows to choose it by."""
    from siren_train.measure.calibrate import stated_threshold

    number = stated_threshold(rule)
    if number is None:
        raise typer.BadParameter(
            f"labelled text is needed to choose by {rule!r}; only a number from 0 to 1 needs none"
        )
    return number


def _described(manifest: Manifest) -> str:
    lines = [("threshold", manifest.threshold)]
    lines += [(tier.name, tier.threshold) for tier in manifest.tiers]
    return ", ".join(f"{name} from {value:.4g}" for name, value in lines)


def _check_use(
    threshold: str | None, tier: list[str] | None, tiers: Path | None, temperature: bool
) -> None:
    if tiers is not None and tier:
        raise typer.BadParameter("give either --tier or --tiers")
    if not (threshold or tier or tiers or temperature):
        raise typer.BadParameter("give --threshold, --tier, --tiers or --temperature")


def _fit_temperature(
    bundle: Bundle,
    backend: Backend,
    sources: Sequence[Source],
    columns: Columns,
    split: str,
    bars: Bars,
) -> tuple[float, "Scores"]:
    """Return the temperature that suits the rows of `split`, and their scores at it."""
    from siren_train.measure.calibrate import FITTING_TEMPERATURE, fit_temperature, tempered_guard
    from siren_train.measure.evaluate import score_rows

    guard = tempered_guard(bundle, backend, FITTING_TEMPERATURE)
    temperature = fit_temperature(score_rows(guard, sources, columns, split, bars.update))
    guard = tempered_guard(bundle, backend, temperature)
    scores = score_rows(
        guard,
        sources,
        columns,
        split,
        lambda stage, done, total: bars.update(f"{stage}, tempered", done, total),
    )
    return temperature, scores


def _print(manifest: Manifest, scores: "Scores", split: str) -> None:
    """Print what the threshold and each tier give on the rows of `split`."""
    from siren_train.measure.metrics import binary_metrics

    lines = [("threshold", manifest.threshold)]
    lines += [(tier.name, tier.threshold) for tier in manifest.tiers]
    for name, value in lines:
        m = binary_metrics(scores.harmful, scores.scores, value)
        typer.echo(
            f"{name}: from {value:.4f}, precision {_share(m.precision)}, recall "
            f"{_share(m.recall)}, macro-F1 {m.macro_f1:.3f} on {m.rows} {split} rows"
        )


def _rules(arguments: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for argument in arguments:
        name, equals, rule = argument.partition("=")
        if not (name and equals and rule):
            raise typer.BadParameter(f"--tier is NAME=RULE, found {argument!r}")
        if name in named:
            raise typer.BadParameter(f"--tier names {name!r} twice")
        named[name] = rule
    return named


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
