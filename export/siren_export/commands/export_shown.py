"""What `siren export` shows on standard error: bars while it works, and what came of it."""

from pathlib import Path

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.report import Candidate

_STAGES = {
    "write": "writing weights",
    "compare": "comparing scores",
    "time": "timing",
    "probe": "quantizing layer by layer",
    "reference": "scoring with the reference",
    "verify": "scoring with the bundle",
}


class Bars:
    """A progress bar a stage, on standard error."""

    def __init__(self) -> None:
        self._bars = rich_progress.Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            _Amount(),
            TimeRemainingColumn(),
            console=_console(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def update(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(
                _STAGES[stage], total=total, bytes=stage == "write"
            )
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def say(self, line: str) -> None:
        self._bars.console.print(line)

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()


class _Amount(ProgressColumn):
    """Bytes written of all, or texts or layers done of all."""

    _texts = MofNCompleteColumn()
    _bytes = DownloadColumn()

    def render(self, task: Task) -> Text:
        return (self._bytes if task.fields["bytes"] else self._texts).render(task)


def tried_line(candidate: Candidate) -> str:
    """What came of a candidate, in a line."""
    return (
        f"{candidate.setting}: {candidate.milliseconds:.3g} ms a text, {candidate.speed:.2f}x "
        f"float32, |score difference| {candidate.mean_difference:.2g} in the mean, "
        f"verdicts changed: {candidate.changed_verdicts}, {candidate.outcome}"
    )


def _console() -> Console:
    """Standard error, where paths and reasons are shown as they are."""
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def show_summary(output: Path, manifest: Manifest, seconds: float) -> None:
    """Say on standard error what was exported."""
    console = _console()
    size = sum(file.size for file in manifest.files.values()) / 1e6
    backbone, report = manifest.backbone, manifest.verification
    console.print(
        f"{output}: {manifest.precision} for {manifest.target}, {backbone.blocks_kept} of "
        f"{backbone.blocks} blocks, {size:,.1f} MB in {seconds:.1f} s"
    )
    if manifest.quantization is not None:
        console.print(f"quantized: {manifest.quantization.fitted}")
        if manifest.quantization.wider:
            console.print(f"8 bits: {', '.join(manifest.quantization.wider)}")
    if manifest.carried_over:
        console.print(
            f"carried over: {manifest.carried_over} matrices keep the blocks that the file has"
        )
    if report.status == "unverified":
        console.print(Text.assemble(("unverified", "yellow"), f": {report.reason}"))
    else:
        console.print(
            f"{report.status}: |score difference| at most {report.max_difference:.1e}, mean "
            f"{report.mean_difference:.1e}, verdicts equal {report.verdict_agreement:.1%}, over "
            f"{report.texts} texts against {report.reference}"
        )
    for name, head in report.further.items():
        console.print(
            f"head {name}: |score difference| at most {head.max_difference:.1e}, mean "
            f"{head.mean_difference:.1e}, verdicts equal {head.verdict_agreement:.1%}"
        )
    if report.stream_max_difference is not None:
        console.print(
            f"streaming: |score difference| at most {report.stream_max_difference:.1e}, mean "
            f"{report.stream_mean_difference:.1e}, over {report.stream_texts} texts "
            "read in chunks, against whole texts"
        )
    if report.exit_max_difference is not None:
        console.print(f"exits: segments within {report.exit_max_difference:.1e} of the whole graph")
