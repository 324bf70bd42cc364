"""What `siren calibrate` does with a grafted generator: thresholds and tiers by its own pass."""

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from siren_runtime import GuardedGenerator
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report
from siren_runtime.errors import InputError
from siren_train.data.rows import Columns

from .by_rules import ByRules


def calibrate_generator(folder: Path, head: str | None, rules: ByRules) -> None:
    """Choose thresholds and tiers of a head on the rows of a split, and write them.

    Args:
        head: None is the primary one.

    Raises:
        typer.BadParameter: there is no rule, or one that needs rows without any.
        InputError: the head has labels or is not there, the data is unusable, or no threshold
            meets a rule.
        BundleError, BackendError: the folder cannot be opened.
    """
    from siren_train.measure.evaluate import NO_ROWS
    from siren_train.measure.generator import (
        score_spans_with_generator,
        score_with_generator,
        write_graft_decision,
    )

    rules.check()
    generator = GuardedGenerator.load(folder, threads=rules.threads, spans=False)
    heads = generator.manifest.heads
    name = next(iter(heads)) if head is None else head
    if name not in heads or heads[name].activation != "softmax":
        told = [name for name, spec in heads.items() if spec.activation == "softmax"]
        raise InputError(
            f"{folder}: of a generator heads of classes are calibrated, here {told}; found {name!r}"
        )
    if rules.spans and not generator.head.pools_mean:
        raise InputError(f"{folder}: the heads read the last token alone, so there are no spans")
    old = generator.manifest.decision(name)
    scores, span_scores = NO_ROWS, None
    if rules.sources:
        columns = rules.columns_of(bundle_classes=Columns().classes)
        with Bars() as bars:
            of_split = rules.sources, columns, rules.split, rules.max_rows
            sizes = rules.sizes(old)
            reading = _with_spans(generator, sizes) if sizes else generator
            scores, refusals = score_with_generator(
                reading, name, *of_split, bars.update, spans=sizes
            )
            if rules.spans:
                of_rows = rules.rows_of_spans(columns)
                span_scores, more = score_spans_with_generator(
                    _with_spans(generator, rules.span_sizes),
                    name,
                    *of_rows,
                    bars.update,
                    rules.span_sizes,
                )
                if more:
                    report(
                        f"--spans: {len(more)} rows, alone or behind others, were left out, the "
                        f"first since {more[0]}"
                    )
        if refusals:
            report(f"{len(refusals)} rows were left out, the first since {refusals[0]}")
    new = rules.decision(old, scores, span_scores)
    write_graft_decision(folder, name, new)
    rules.tell(folder, old, new, scores)


def _with_spans(generator: GuardedGenerator, sizes: Sequence[int]) -> GuardedGenerator:
    """One whose heads all score spans of these sizes, whatever thresholds they have."""
    manifest = generator.manifest
    decisions = {name: replace(one, spans=[]) for name, one in manifest.decisions.items()}
    bare = replace(manifest, decisions=decisions)
    return GuardedGenerator(generator.engine, generator.head, bare, sizes)
