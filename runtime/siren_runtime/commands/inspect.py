"""`siren inspect`: show what a bundle is, and check it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from siren_runtime.backends.tensorrt.plan import recorded_plans
from siren_runtime.bundle.backbone import Backbone, ModelName
from siren_runtime.bundle.ensemble import (
    EnsembleManifest,
    check_heads,
    is_ensemble,
    read_ensemble,
)
from siren_runtime.bundle.graphs import TensorSpec
from siren_runtime.bundle.heads import Decision, HeadSpec
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.reader import Bundle, Verify, load_bundle
from siren_runtime.bundle.report import Tuning, Verification
from siren_runtime.bundle.shipped import find_bundle
from siren_runtime.bundle.thresholds import ResponseThresholds, SpanThreshold, Tier
from siren_runtime.guard import Guard

from .console import one_line
from .plans_shown import plan_table

_BLOCK = re.compile(r"\.(\d+)\.")

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command(epilog="Example: siren inspect engines/minilm/bundle --check")
def inspect(
    bundle: Annotated[
        str,
        typer.Argument(
            help="Folder of a bundle or an ensemble, a shipped guard's name (minilm), or a hub "
            "repository id."
        ),
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Verify every file's SHA-256, and score.")
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the manifest as JSON; of an ensemble, its own and its members'."
        ),
    ] = False,
) -> None:
    """Show what a bundle holds: backbone, head, text rules, graphs, files, verification.

    Of an ensemble: its threshold and tiers, and its members in short.

    The exit status is 1 if it is damaged. Without --check, files are compared by size only.
    TensorRT plans are shown with what they were compiled for, and whether they still match.
    """
    folder = find_bundle(bundle)
    verify: Verify = "full" if check else "size"
    ensemble = read_ensemble(folder) if is_ensemble(folder) else None
    names = ["."] if ensemble is None else ensemble.members
    members = {name: load_bundle(folder / name, verify=verify) for name in names}
    check_heads([member.manifest for member in members.values()])
    checked = "every file has its size"
    if check:
        with Guard.load(folder, unreadable="review") as guard:  # its tokenizer may lack the word
            if guard.manifests[0].is_trajectory:
                guard.score_trajectory([{"role": "user", "content": "Hello"}])
            else:
                guard.score("Hello")
            checked = f"every file has its SHA-256, and the engine scores (on {guard.backend})"
    if ensemble is None:
        _show_bundle(folder, members["."], checked, check=check, json=json)
    else:
        _show_ensemble(folder, ensemble, members, checked, json=json)


def _show_bundle(folder: Path, bundle: Bundle, checked: str, *, check: bool, json: bool) -> None:
    if json:
        typer.echo(msgspec.json.encode(bundle.manifest))
        return
    Console().print(_overview(str(folder), bundle.manifest, checked))
    plans = recorded_plans(bundle)
    if plans:
        Console().print(Text(), plan_table(bundle, plans, check=check))


def _show_ensemble(
    folder: Path,
    ensemble: EnsembleManifest,
    members: Mapping[str, Bundle],
    checked: str,
    *,
    json: bool,
) -> None:
    manifests = {name: member.manifest for name, member in members.items()}
    if json:
        typer.echo(msgspec.json.encode({"ensemble": ensemble, "members": manifests}))
        return
    threshold, of_members = ensemble.threshold, [m.threshold for m in manifests.values()]
    own = f"{sum(of_members) / len(of_members):g}, the mean of its members'"
    facts = {
        "ensemble": f"{folder} (format {ensemble.format_version}), the mean of {len(members)} "
        "members' scores",
        "checked": checked,
        "classes": ", ".join(next(iter(manifests.values())).head.labels) or "not named",
        "threshold": own if threshold is None else f"{threshold:g}",
        "calibration": f"{_tiers(ensemble.tiers)}{_spans(ensemble.spans)}",
        **_responses(ensemble.responses),
    }
    table = Table("member", "backbone", "head", "engine", "threshold", "size", "verification")
    table.box, table.padding = None, (0, 2, 0, 0)
    for name, manifest in manifests.items():
        head, report = manifest.head, manifest.verification
        table.add_row(
            Text(one_line(name)),
            Text(one_line(manifest.backbone.id)),
            Text(one_line(f"{head.kind}, {head.features} features")),
            f"{manifest.precision} for {manifest.target}",
            f"{manifest.threshold:g}",
            decimal(sum(file.size for file in manifest.files.values())),
            report.status,
        )
    Console().print(Group(_facts(facts), Text(), table))


def _overview(folder: str, manifest: Manifest, checked: str) -> Group:
    backbone, head = manifest.backbone, manifest.head
    facts = {
        "bundle": f"{folder} (format {manifest.format_version}, made {manifest.created})",
        "checked": checked,
        "backbone": f"{_model(backbone)}, {backbone.model_type}",
        **({"its digest": backbone.digest} if backbone.digest else {}),
        **({"the head names": _model(backbone.named)} if backbone.named else {}),
        "blocks": f"{backbone.blocks_kept} kept of {backbone.blocks}",
        "head": _head(head),
        "layers": ", ".join(map(str, head.layers)),
        "classes": ", ".join(head.labels) or "not named",
        "threshold": f"{manifest.threshold:g}",
        "calibration": _calibration(manifest),
        **_responses(manifest.responses),
        **_further(manifest),
        **_exits(manifest),
        **_orders(manifest),
        "text": _text(manifest),
        "precision": f"{manifest.precision} for {manifest.target}",
        **_quantization(manifest),
        "verification": _verification(manifest.verification),
        "made by": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    graphs = Table("graph", "opset", "inputs", "outputs", box=None, padding=(1, 2, 0, 0))
    for graph in manifest.graphs.values():
        graphs.add_row(
            Text(one_line(graph.file)),
            str(graph.opset),
            _tensors(graph.inputs),
            _tensors(graph.outputs),
        )
    files = Table("file", "size", "SHA-256", box=None, padding=(0, 2, 0, 0))
    for name, spec in manifest.files.items():
        files.add_row(Text(one_line(name)), decimal(spec.size), spec.sha256[:16])
    shown = Group(_facts(facts), graphs, Text(), files)
    return Group(shown, Text(), _tuning(manifest.tuning)) if manifest.tuning else shown


def _head(head: HeadSpec) -> str:
    whats = {"softmax": "classes", "sigmoid": "labels", "orders": "orders", "logistic": "logit"}
    what = whats[head.activation]
    return (
        f"{head.kind} over {head.features} features ({head.pooling}) of {len(head.layers)} layers, "
        f"{head.classes} {what}"
    )


def _model(model: Backbone | ModelName) -> str:
    return f"{model.id} at {model.revision}" if model.revision else model.id


def _text(manifest: Manifest) -> str:
    text, rules = manifest.text, manifest.trajectory
    if rules is not None:
        return (
            f"trajectories rendered by {rules.template}, tools in {rules.tools} form, at most "
            f"{text.max_length} tokens, of longer ones the beginning and the end"
        )
    return (
        f"cleaner {text.cleaner}, prompt and response joined by {text.joiner!r}, at most "
        f"{text.max_length} tokens, truncated on the {text.truncation_side}"
    )


def _further(manifest: Manifest) -> dict[str, str]:
    """The heads beside the primary one, what labels hold from, and what covers OpenAI's keys."""
    facts = {}
    several = sum(bool(head.openai) for head in manifest.heads.values()) > 1
    for name, head in manifest.heads.items():
        decision = manifest.decision(name)
        if name != manifest.primary:
            facts[f"head {name}"] = (
                f"{_head(head)}: {', '.join(head.labels) or 'not named'}; "
                f"{_thresholds(decision)}{_smoothing(decision.smoothing)}"
            )
            if decision.responses is not None:
                facts[f"responses of {name}"] = _thresholds(decision.responses)
        if decision.labels:
            facts[f"labels of {name}"] = ", ".join(
                f"{label.name} from {label.threshold:g}" for label in decision.labels
            )
        if head.openai:
            covered = [f"{key} by {' or '.join(by)}" for key, by in head.openai.items() if by]
            missing = [key for key, by in head.openai.items() if not by]
            facts[f"OpenAI keys of {name}"] = ", ".join(covered) or "none"
            facts[f"not covered by {name}" if several else "not covered"] = (
                ", ".join(missing) or "none"
            )
    return facts


def _exits(manifest: Manifest) -> dict[str, str]:
    """Behind how many blocks an exit stands, and from which scores it decides."""
    cascade = manifest.cascade
    if cascade is None:
        return {}
    facts = {
        f"exit behind {one.depth}": f"safe up to {_bound(one.low)}, harmful from {_bound(one.high)}"
        for one in cascade.exits
    }
    if not cascade.decides:
        return dict.fromkeys(facts, "has no bounds: siren calibrate --cascade")
    cost = f"{cascade.cost:.3g} of the blocks on {cascade.rows} rows"
    return {**facts, "exits": f"{cost}, for a loss of {100 * cascade.loss:g} points of macro-F1"}


def _orders(manifest: Manifest) -> dict[str, str]:
    """From which scores a lower order of a polynomial would be enough."""
    if manifest.orders is None:
        return {}
    return {
        f"order {n}": f"sure of safe up to {_bound(one.low)}, of harm from {_bound(one.high)}"
        for n, one in enumerate(manifest.orders.bounds, start=1)
    }


def _bound(bound: float | None) -> str:
    return "none" if bound is None else f"{bound:.4g}"


def _facts(facts: Mapping[str, str]) -> Table:
    about = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        about.add_row(Text(name, "bold"), Text(one_line(fact)))
    return about


def _calibration(manifest: Manifest) -> str:
    smoothed = _smoothing(manifest.smoothing)
    decided = f"{_tiers(manifest.tiers)}{_spans(manifest.spans)}"
    return f"temperature {manifest.temperature:g}, {decided}{smoothed}"


def _smoothing(tokens: int) -> str:
    return f", scores of streams averaged over {tokens} tokens" if tokens > 1 else ""


def _responses(responses: ResponseThresholds | None) -> dict[str, str]:
    """From which scores a text with a response is harmful, where that is not as of other texts."""
    return {} if responses is None else {"responses": _thresholds(responses)}


def _thresholds(decides: Decision | ResponseThresholds) -> str:
    return f"from {decides.threshold:g}, {_tiers(decides.tiers)}{_spans(decides.spans)}"


def _spans(spans: Sequence[SpanThreshold]) -> str:
    return "".join(f", spans of {span.tokens} tokens from {span.threshold:g}" for span in spans)


def _tiers(tiers: Sequence[Tier]) -> str:
    return ", ".join(f"{tier.name} from {tier.threshold:g}" for tier in tiers) or "no tiers"


def _quantization(manifest: Manifest) -> dict[str, str]:
    """What was fitted to which texts, the matrices that have 8 bits where others have 4, and how
    many keep the blocks that the backbone's file has.
    """
    quantization, carried_over = manifest.quantization, manifest.carried_over
    found = {"carried over": f"{carried_over} matrices"} if carried_over else {}
    if quantization is None:
        return found
    wider = {"in 8 bits": ", ".join(quantization.wider)} if quantization.wider else {}
    return {"quantization": quantization.fitted, **wider, **found}


def _tuning(tuning: Tuning) -> Group:
    """What was tried before the precision was chosen, and what is float32 in it."""
    columns = ("tried", "size", "ms a text", "speed", "mean difference", "p99", "largest")
    candidates = Table(*columns, "verdicts changed", "outcome", box=None, padding=(0, 2, 0, 0))
    for candidate in tuning.candidates:
        differences = (
            candidate.mean_difference,
            candidate.p99_difference,
            candidate.max_difference,
        )
        candidates.add_row(
            Text(one_line(candidate.setting)),
            decimal(candidate.bytes),
            f"{candidate.milliseconds:.3g}",
            f"{candidate.speed:.2f}x",
            *(f"{difference:.2g}" for difference in differences),
            f"{candidate.changed_verdicts} of {tuning.texts}",
            Text(one_line(candidate.outcome)),
        )
    names = [
        name for candidate in tuning.candidates if candidate.kept for name in candidate.keep_float
    ]
    kept = Text(f"float32: {one_line(', '.join(names)) or 'nothing more'}")
    return Group(
        Text(f"budget {tuning.budget:g} of mean difference and of verdicts"), candidates, kept
    )


def _tensors(specs: list[TensorSpec]) -> Text:
    """One line a tensor; those of every block in one."""
    blocks: dict[str, list[str]] = {}
    for spec in specs:
        line = one_line(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]")
        block = _BLOCK.search(spec.name)
        key = _BLOCK.sub(".{}.", line, count=1) if block else line
        blocks.setdefault(key, []).append(block[1] if block else "")
    return Text(
        "\n".join(
            key.replace("{}", found[0] if len(found) == 1 else f"{found[0]}..{found[-1]}", 1)
            for key, found in blocks.items()
        )
    )


def _verification(report: Verification) -> str:
    stream = (
        f"; streaming in chunks within {report.stream_max_difference:.3g} of whole texts "
        f"(bound of the {report.stream_bounded} {report.stream_bound:.3g}, "
        f"{report.stream_texts} texts)"
        if report.stream_max_difference is not None
        else ""
    )
    if report.exit_max_difference is not None:
        stream += f"; segments behind exits within {report.exit_max_difference:.3g} of whole texts"
    if report.status == "unverified":
        return f"unverified: {report.reason or 'no reason recorded'}{stream}"
    fields = [f"{report.status} against {report.reference}, {report.texts} texts"]
    for name, value in (
        ("largest difference", report.max_difference),
        ("mean difference", report.mean_difference),
        (f"bound of the {report.bounded}", report.bound),
        ("equal verdicts", report.verdict_agreement),
    ):
        if value is not None:
            fields.append(f"{name} {value:.3g}")
    if report.reason is not None:
        fields.append(report.reason)
    if report.worst_text is not None:
        fields.append(f"worst text {report.worst_text!r}")
    fields += [f"head {n} within {h.max_difference:.3g}" for n, h in report.further.items()]
    return ", ".join(fields) + stream
