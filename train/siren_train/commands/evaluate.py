"""`siren evaluate`: measure a guard, or an ensemble of guards, on labelled text."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from siren_runtime import Guard
from siren_runtime.commands.console import refuse_options
from siren_runtime.errors import InputError
from siren_runtime.generation.manifest import Pooled
from siren_runtime.text.reading import AS_LLM_SIREN, DEFAULT_MAX_BYTES, LongText
from siren_train.data.benchmarks import (
    BENCHMARKS,
    GROUPS,
    Benchmark,
    benchmark_sources,
    find_benchmarks,
)
from siren_train.data.sources import parse_source

from . import options
from .extra import need_train_extra

need_train_extra()

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

siren evaluate my-guard data/*.jsonl -o evaluation --by category

siren evaluate my-guard streams.jsonl --streaming --false-alarms 0.1 -o evaluation

siren evaluate my-guard data/*.jsonl --diluted 100,300,1000 --max-rows 200 -o evaluation

siren evaluate my-guard prompts.jsonl --disguised

siren evaluate my-guard --benchmark siren -o evaluation

siren evaluate my-guard data/*.jsonl --head jailbreak -o evaluation

siren evaluate my-agent-guard runs.jsonl -o evaluation
"""


@app.command(epilog=_EPILOG)
def evaluate(
    context: typer.Context,
    bundle: Annotated[
        str,
        typer.Argument(
            help="Folder of a bundle or an ensemble, a shipped guard's name (minilm), or a hub "
            "repository id."
        ),
    ],
    data: options.OptionalData = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for JSON, tables and plots.")
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option("--with", help="A further bundle, whose scores are averaged in; repeatable."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="Name of the head whose scores, verdicts and classes are measured; default: the "
            "first. Labels of all heads are measured either way."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which rows to score.")] = "test",
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Harmful from this score; default: the bundle's."),
    ] = None,
    by: Annotated[
        Literal["dataset", "category"],
        typer.Option(
            help="How finely to report. category: of each category, and of what several of them "
            "have before a colon, such as the language of fr: question and fr: insult."
        ),
    ] = "dataset",
    streaming: Annotated[
        bool,
        typer.Option(
            "--streaming",
            help="Rows are responses with harm_start and harm_end; measure when the alarm comes.",
        ),
    ] = False,
    words: Annotated[
        int | None,
        typer.Option(min=1, help="Words between scores of a stream; default: 1, an encoder's 8."),
    ] = None,
    pool: Annotated[
        Pooled,
        typer.Option(
            help="For --streaming with a decoder: what counts, prompt and response as in a score, "
            "or the response alone, as the SIREN paper has it."
        ),
    ] = "response",
    false_alarms: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="For --streaming: measure each head at the threshold at which at most this share "
            "of the safe streams raises an alarm.",
        ),
    ] = None,
    diluted: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS,...",
            help="Measure rows among so many tokens of safe rows of their data set, read by their "
            "beginning, in windows and in spans.",
        ),
    ] = None,
    disguised: Annotated[
        bool,
        typer.Option(
            "--disguised",
            help="Measure prompts whose letters are swapped, left out, masked, spelled apart or "
            "put as digits, or whose words are run together or strewn with signs.",
        ),
    ] = False,
    max_rows: Annotated[
        int | None, typer.Option(min=2, help="Of a data set, each class alike; default: all.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all.")] = None,
    long_text: Annotated[
        LongText | None,
        typer.Option(
            help="How a text over the guard's max_length is read: truncate (default), its "
            "beginning, as the SIREN paper measures and heads are trained, or windows, as guards "
            "read by default."
        ),
    ] = None,
    spans: Annotated[
        bool | None,
        typer.Option(
            "--spans/--no-spans",
            help="Let spans flag rows too, as guards do by default, of a head that siren calibrate "
            "--spans set thresholds for; default: the whole text alone does, as the SIREN paper "
            "measures.",
        ),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Public benchmarks instead of DATA, repeatable: {', '.join(GROUPS)}, or one of "
            f"{', '.join(one.name for one in BENCHMARKS)}.",
        ),
    ] = None,
    downloads: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Downloaded benchmarks, FOLDER/org/name as on the hub; default: the hub.",
        ),
    ] = None,
    text: options.TextColumns = "",
    label: options.LabelColumn = "label",
    split_column: options.SplitColumn = "split",
    id_column: options.IdColumn = "id",
    category: options.CategoryColumn = "category",
    classes: options.BundleClasses = "",
    labels: options.Labels = "",
    max_bytes: options.MaxBytes = DEFAULT_MAX_BYTES,
) -> None:
    """Measure a guard on labelled text: macro-F1 per data set and their mean, and much else.

    The Markdown report goes to standard output; --output keeps it with JSON and plots.

    --streaming feeds each `response`, after its `prompt`, as it would arrive, and counts spans
    where the guard has thresholds for them. harm_start and harm_end are characters of the response;
    a row without them is safe, or harmful throughout where its label is.

    --benchmark reads public data sets as the SIREN paper's code does and shows the paper's figures
    beside; siren is its seven. qwen3guard-streams and what it is made of are streamed. What was
    assumed, and how to reproduce the paper's table: docs/public-benchmarks.md.

    A guard of trajectories reads rows with messages, tools and a label, as siren extract does.

    Where a head has labels, they are those that the category column names, joined by + or in a
    list, and each is measured; so is each of more than two classes of the head that is measured.
    Where that has labels, rows are flagged by each label's threshold.
    """
    benchmarks = _benchmarks(data, benchmark, downloads)
    streaming = streaming or any(one.streams for one in benchmarks)
    rewritten = [*(["--diluted"] if diluted else []), *(["--disguised"] if disguised else [])]
    _check_options(
        context,
        output,
        rewritten,
        one_bundle=not ensemble,
        by_category=by == "category",
        streaming=streaming,
        head=head,
        threshold=threshold,
        false_alarms=false_alarms,
        labels=labels,
        long_text=long_text,
        spans=spans,
    )
    sources = [
        *(parse_source(argument) for argument in data or []),
        *benchmark_sources(benchmarks, downloads),
    ]
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
    how: dict[str, Any] = {
        "split": split,
        "threshold": threshold,
        "max_rows": max_rows,
        "output": output,
    }
    # What measures is imported only here, so that siren --help need not wait for scikit-learn and
    # matplotlib.
    if streaming:
        from .streaming import evaluate_streaming

        folder = options.bundle_folder(bundle)
        # Scores are ranked, so they are of one depth; spans count as in streams by default.
        opened = {**AS_LLM_SIREN, "spans": None, "exits": False}
        guard = Guard.load(folder, threads=threads, streaming=True, **opened)
        if len(guard.manifests) > 1:
            raise InputError(f"{bundle}: is an ensemble, and --streaming takes one bundle")
        if guard.manifests[0].is_trajectory:
            raise _scores_trajectories(bundle)
        columns = columns_of(bundle_classes=options.labels(guard.manifest))
        evaluate_streaming(
            guard,
            bundle,
            sources,
            columns,
            words=words,
            pool=pool,
            false_alarms=false_alarms,
            **how,
        )
        return
    bundles = [bundle, *(ensemble or [])]
    folders = [options.bundle_folder(name) for name in bundles]
    # Every row counts, whatever it holds.
    how_read = {"long_text": long_text or "truncate", "spans": None if spans else False}
    read = {**AS_LLM_SIREN, **how_read}
    load = partial(Guard.load, folders if ensemble else folders[0], threads=threads, **read)
    guard = load(exits=not rewritten)  # where scores are ranked they are of one depth
    trajectories = guard.manifests[0].is_trajectory
    asked = text or labels or long_text or spans is not None
    if trajectories and (benchmarks or rewritten or asked):
        raise _scores_trajectories(bundle)
    if head not in (None, *guard.heads):
        raise InputError(f"{bundle}: has no head {head!r}; it has {', '.join(guard.heads)}")
    own = options.labels(guard.manifests[0], guard.heads.index(head or guard.heads[0]))
    columns = columns_of(bundle_classes=own, labels=labels, trajectories=trajectories)
    options.check_labels(columns.labels, guard.manifests[0].heads.values())
    if diluted:
        from .diluted import evaluate_diluted

        evaluate_diluted(guard, bundles, sources, columns, lengths=diluted, **how)
    elif disguised:
        from .disguised import evaluate_disguised

        evaluate_disguised(guard, bundles, sources, columns, **how)
    else:
        from .texts import evaluate_texts

        of_data = bundles, sources, columns
        finely = by == "category"
        evaluate_texts(
            guard, load, *of_data, head=head, by_category=finely, benchmarks=benchmarks, **how
        )


def _benchmarks(
    data: list[str] | None, names: list[str] | None, downloads: Path | None
) -> list[Benchmark]:
    """The benchmarks that are named, in place of data."""
    if bool(data) == bool(names) or (downloads and not names):
        raise typer.BadParameter("give DATA, or --benchmark, which --downloads goes with")
    try:
        return find_benchmarks(names or [])
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="--benchmark") from None


def _check_options(
    context: typer.Context,
    output: Path | None,
    rewritten: list[str],
    *,
    one_bundle: bool,
    by_category: bool,
    streaming: bool,
    head: str | None,
    threshold: float | None,
    false_alarms: float | None,
    labels: str,
    long_text: LongText | None,
    spans: bool | None,
) -> None:
    """Refuse options that would be left unread, and an output that is no folder.

    Args:
        rewritten: which of --diluted and --disguised are given.
    """
    if not streaming:
        refuse_options(context, ["words", "pool"], "--streaming")
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"{output}: a file is there; reports go into a folder")
    if streaming and (by_category or not one_bundle):
        raise typer.BadParameter("--streaming takes one bundle, and reports by data set")
    if rewritten and (streaming or by_category):
        raise typer.BadParameter(f"{rewritten[0]} reports by data set, of whole texts")
    read = long_text or spans is not None
    if streaming and (labels or read):
        raise typer.BadParameter("--streaming has no --labels, --long-text and --spans")
    if rewritten and (labels or (read and "--diluted" in rewritten)):
        raise typer.BadParameter(
            "--diluted and --disguised have no --labels, and --diluted reads texts in each way, "
            "without --long-text and --spans"
        )
    if head and (streaming or rewritten or threshold is not None):
        raise typer.BadParameter(
            "--head is measured on texts as they are, at its own thresholds; --streaming measures "
            "every head"
        )
    if len(rewritten) > 1:
        raise typer.BadParameter("--diluted and --disguised are measured one by one")
    if false_alarms is not None and (threshold is not None or not streaming):
        raise typer.BadParameter("--false-alarms goes with --streaming, in place of --threshold")


def _scores_trajectories(bundle: str) -> InputError:
    return InputError(
        f"{bundle}: scores trajectories of agents: rows have messages, tools and a label, and "
        "there is no --streaming, --benchmark, --diluted, --disguised, --text, --labels and "
        "--long-text"
    )
