"""Options that the commands that read labelled text share."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from siren_runtime.bundle.heads import HeadSpec
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.shipped import shipped_bundle
from siren_runtime.bundle.thresholds import SpanThreshold
from siren_runtime.errors import InputError
from siren_runtime.text.reading import DEFAULT_MAX_BYTES
from siren_train.data.labels import read_label_table
from siren_train.data.reading import MostRows
from siren_train.data.rows import Columns

_DATA = typer.Argument(
    metavar="[SPLIT=]DATA...",
    help="Labelled text: .jsonl, .csv or .parquet files, or hub:NAME[:CONFIG][@PART] for a "
    "hub data set, or one of its splits.",
)
Data = Annotated[list[str], _DATA]
OptionalData = Annotated[list[str] | None, _DATA]
TextColumns = Annotated[
    str,
    typer.Option(
        "--text",
        help="Text column, or several joined by newlines: prompt,response; "
        "default: text, else prompt and response.",
    ),
]
Splits = Annotated[
    str,
    typer.Option(
        "--splits",
        metavar="NAME,...",
        help="Take the rows of these alone: train,validation; default: all.",
    ),
]
MaxTrainRows = Annotated[
    list[str] | None,
    typer.Option(
        "--max-train-rows",
        metavar="[DATASET=]N",
        help="Of each data set at most so many train rows, and a third as many of each other "
        "split; chosen by their text. May be given again for single data sets, by name.",
    ),
]
LabelColumn = Annotated[str, typer.Option("--label", help="Column of the label.")]
SplitColumn = Annotated[
    str, typer.Option("--split-column", help="Column of the split, where DATA names none.")
]
IdColumn = Annotated[str, typer.Option("--id", help="Column of the id, if there is one.")]
CategoryColumn = Annotated[
    str, typer.Option("--category", help="Column of the category, if there is one.")
]
Labels = Annotated[
    str,
    typer.Option(
        "--labels",
        metavar="NAME,...|TABLE",
        help="Labels that the category column names, several joined by + or in a list, for siren "
        "train --head categories. A harmful row that names none of them is left out there. Or a "
        'JSON file that says which categories are of which label: {"hate": ["slurs", "Hate: *"]}.',
    ),
]
MaxBytes = Annotated[
    int, typer.Option(min=1, help="Bytes of a row's text; a larger row is an error.")
]
Classes = Annotated[
    str,
    typer.Option(help="Class names by index; a label is a name or an index. Class 1 is harm."),
]
BundleClasses = Annotated[
    str,
    typer.Option(
        help="Class names by index; a label is a name or an index. Class 1 is harm; "
        "default: the bundle's."
    ),
]


def bundle_folder(name: str) -> str:
    """Return what Guard.load takes: a shipped guard's name stands for its bundle, as there."""
    return str(shipped_bundle(name) or name)


def labels(manifest: Manifest, place: int = 0) -> Sequence[str]:
    """Return the names of the classes that a bundle's head tells apart; one of labels tells harm.

    Args:
        place: of the head among the bundle's.
    """
    head = [*manifest.heads.values()][place]
    return (head.labels if head.activation == "softmax" else ()) or Columns().classes


def make_columns(
    *,
    text: str,
    label: str,
    split: str,
    id_: str,
    category: str,
    classes: str,
    bundle_classes: Sequence[str] = (),
    labels: str = "",
    trajectories: bool = False,
    prefixes: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Columns:
    """Read the options above.

    Args:
        bundle_classes: names of the bundle's classes, if there is a bundle. They hold where
            `classes` is empty.
        labels: names that categories may hold, or a table of them.
        trajectories, prefixes: rows are those.
        max_bytes: of a row's text.

    Raises:
        typer.BadParameter: the classes are not two or more different names, or contradict those of
            the bundle.
        InputError: a column has no name, or the table of labels is none.
    """
    text_columns = [name.strip() for name in text.split(",")] if text else []
    _check_named("--text", *text_columns)
    _check_named("--label", label)
    _check_named("--split-column", split)
    _check_named("--id", id_)
    _check_named("--category", category)
    names = tuple(name.strip() for name in classes.split(",")) if classes else tuple(bundle_classes)
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise typer.BadParameter(f"--classes needs two or more different names, found {classes!r}")
    own = list(bundle_classes)
    if any(name in own and own.index(name) != index for index, name in enumerate(names)):
        raise typer.BadParameter(
            f"--classes is {', '.join(names)}, but the bundle's classes are {', '.join(own)}, "
            "in this order"
        )
    table: dict[str, tuple[str, ...]] = {}
    if labels.endswith(".json"):
        table = read_label_table(Path(labels))
    names_of_labels = [*table] or [n.strip() for n in labels.split(",") if labels]
    if (
        len(set(names_of_labels)) < len(names_of_labels)
        or not all(names_of_labels)
        or any("+" in name for name in names_of_labels)
    ):
        raise typer.BadParameter(f"--labels needs different names without +, found {labels}")
    return Columns(
        text=tuple(text_columns),
        label=label,
        split=split,
        id=id_,
        category=category,
        classes=names,
        labels=tuple(names_of_labels),
        label_table=table,
        trajectories=trajectories,
        prefixes=prefixes,
        max_bytes=max_bytes,
    )


def _check_named(option: str, *columns: str) -> None:
    if not all(name.strip() for name in columns):
        raise InputError(
            f"{option} {','.join(columns)!r}: a column without a name; name each column, or leave "
            f"{option} out"
        )


def check_labels(asked: Sequence[str], heads: Iterable[HeadSpec]) -> None:
    """Refuse what `Labels` names and no head has.

    Raises:
        typer.BadParameter: there is such a name.
    """
    known = dict.fromkeys(label for head in heads if head.has_labels for label in head.labels)
    if unknown := [name for name in asked if name not in known]:
        raise typer.BadParameter(
            f"--labels names {', '.join(unknown)}; the guard has "
            + (f"the labels {', '.join(known)}" if known else "no head of labels")
        )


def split_names(splits: str) -> list[str]:
    """The names that `Splits` holds; none stand for all."""
    return [name.strip() for name in splits.split(",")] if splits else []


def most_rows(arguments: Sequence[str] | None) -> MostRows:
    """What `MaxTrainRows` says.

    Raises:
        typer.BadParameter: it is not written so, or names a data set twice.
    """
    found: dict[str, int] = {}
    for argument in arguments or ():
        name, _, number = argument.rpartition("=")
        if not (number.isdecimal() and int(number)) or argument.startswith("=") or name in found:
            raise typer.BadParameter(
                f"--max-train-rows is a number above 0, and DATASET=N for single data sets, each "
                f"once; found {argument!r}"
            )
        found[name] = int(number)
    return MostRows(found.pop("", None), found)


def tier_rules(arguments: Sequence[str]) -> dict[str, str]:
    """What --tier NAME=RULE says, the rule of each name.

    Raises:
        typer.BadParameter: it is not written so, or a name repeats.
    """
    named: dict[str, str] = {}
    for argument in arguments:
        name, equals, rule = argument.partition("=")
        if not (name and equals and rule):
            raise typer.BadParameter(f"--tier is NAME=RULE, found {argument!r}")
        if name in named:
            raise typer.BadParameter(f"--tier names {name!r} twice")
        named[name] = rule
    return named


def stated(rule: str) -> float:
    """The number that a rule is, which needs no rows to choose it by.

    Raises:
        typer.BadParameter: it is none.
    """
    from siren_train.measure.threshold_rules import stated_threshold

    number = stated_threshold(rule)
    if number is None:
        raise typer.BadParameter(
            f"labelled text is needed to choose by {rule!r}; only a number from 0 to 1 needs none"
        )
    return number


def stated_spans(rule: str, sizes: Sequence[int]) -> list[SpanThreshold]:
    """The number that a rule is, as the threshold of spans of every size; raises as `stated`."""
    number = stated(rule)
    return [SpanThreshold(size, number) for size in sizes]
