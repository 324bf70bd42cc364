"""What `siren export` and `siren graft` show: bars while they work, and what came of it."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.report import Candidate
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import one_line

_STAGES = {
    "calibrate": "running example texts",
    "write": "writing weights",
    "compare": "comparing scores",
    "time": "timing",
    "probe": "quantizing layer by layer",
    "reference": "scoring with the reference",
    "verify": "scoring with the bundle",
    "read": "reading the model",
    "generate": "generating with and without",
}


def export_bars() -> Bars:
    """Bars of the stages of an export or a graft."""
    return Bars(_STAGES, in_bytes=("write",))


def tried_line(candidate: Candidate) -> str:
    """What came of a candidate, in a line."""
    return (
        f"{candidate.setting}: {candidate.milliseconds:.3g} ms a text, {candidate.speed:.2f}x "
        f"float32, |score difference| {candidate.mean_difference:.2g} in the mean, "
        f"verdicts changed: {candidate.changed_verdicts}, {candidate.outcome}"
    )


def _say(line: str, style: str = "") -> None:
    """Write a line on standard error, where paths and reasons are shown as they are."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(one_line(line), style))


def show_summary(output: Path, manifest: Manifest, seconds: float) -> None:
    """Say on standard error what was exported."""
    size = sum(file.size for file in manifest.files.values()) / 1e6
    backbone, report = manifest.backbone, manifest.verification
    _say(
        f"{output}: {manifest.precision} for {manifest.target}, {backbone.blocks_kept} of "
        f"{backbone.blocks} blocks, {size:,.1f} MB in {seconds:.1f} s"
    )
    if manifest.quantization is not None:
        _say(f"quantized: {manifest.quantization.fitted}")
        if manifest.quantization.wider:
            _say(f"8 bits: {', '.join(manifest.quantization.wider)}")
    if manifest.carried_over:
        _say(f"carried over: {manifest.carried_over} matrices keep the blocks that the file has")
    if report.status == "unverified":
        _say(f"unverified: {report.reason}", "yellow")
    else:
        _say(
            f"{report.status}: |score difference| at most {report.max_difference:.1e}, mean "
            f"{report.mean_difference:.1e}, verdicts equal {report.verdict_agreement:.1%}, over "
            f"{report.texts} texts against {report.reference}"
        )
    for name, head in report.further.items():
        _say(
            f"head {name}: |score difference| at most {head.max_difference:.1e}, mean "
            f"{head.mean_difference:.1e}, verdicts equal {head.verdict_agreement:.1%}"
        )
    if report.stream_max_difference is not None:
        _say(
            f"streaming: |score difference| at most {report.stream_max_difference:.1e}, mean "
            f"{report.stream_mean_difference:.1e}, over {report.stream_texts} texts "
            "read in chunks, against whole texts"
        )
    if report.exit_max_difference is not None:
        _say(f"exits: segments within {report.exit_max_difference:.1e} of the whole graph")
