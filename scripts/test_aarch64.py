"""What scripts/test-aarch64 does: scores of an emulated aarch64 beside those of this machine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from siren_export.passes.table import row_of
from siren_export.verify.texts import STREAM_TEXTS, TEXTS
from siren_runtime.bundle.reader import load_bundle

_LONGEST = 400  # characters of the texts, since the emulation is slow
_STREAMED = "\n".join(STREAM_TEXTS)[:300]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def main(work: Path, bundles: list[Path]) -> int:
    """Print how far the scores are apart, and return how many bundles miss their bound."""
    texts = work / "texts.jsonl"
    chosen = [text for text in TEXTS if len(text) <= _LONGEST]
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
    here = partial(_run, [str(Path(sys.executable).with_name("siren"))], {})
    emulator = ["qemu-aarch64-static", "-cpu", os.environ.get("CPU", "neoverse-n1")]
    emulated = [*emulator, "-L", str(work / "system"), str(work / "system/usr/bin/python3")]
    wheels = work / "wheels"
    there = partial(_run, [*emulated, str(wheels / "bin/siren")], {"PYTHONPATH": str(wheels)})
    versions = "import onnxruntime, platform; print(platform.machine(), onnxruntime.__version__)"
    print(_run(emulated, {"PYTHONPATH": str(wheels)}, "-c", versions).stdout.strip(), emulator[-1])
    return sum(not _agree(bundle, texts, here, there) for bundle in bundles)


def _run(
    command: list[str], environment: dict[str, str], *arguments: str, given: str | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command, *arguments],
        env={"ORT_DISABLE_TELEMETRY": "1", **os.environ, **environment},
        input=given,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )


def _agree(bundle: Path, texts: Path, here: Command, there: Command) -> bool:
    manifest = load_bundle(bundle).manifest
    bound = row_of(manifest.target, manifest.precision).bound
    start = time.monotonic()
    options = (str(bundle), "--format", "jsonl", "--threads", "1")
    calls: list[dict[str, Any]] = [
        {"arguments": ("score", *options, "--unreadable", "review", "--input", str(texts))},
        {"arguments": ("stream", *options), "given": _STREAMED},
    ]
    pairs = [
        pair
        for call in calls
        for pair in zip(_results(here, **call), _results(there, **call), strict=True)
    ]
    apart = [abs(one["score"] - other["score"]) for one, other in pairs]
    other_verdicts = sum(one["is_harmful"] != other["is_harmful"] for one, other in pairs)
    found = max(apart) if bound.of == "max" else fmean(apart)
    print(
        f"{bundle.name}: {len(apart)} scores, apart by {max(apart):.2g} at most and "
        f"{fmean(apart):.2g} in the mean; {bound.of} may be {bound.value:g}; "
        f"{other_verdicts} other verdicts; {time.monotonic() - start:.0f} s"
    )
    return found <= bound.value and not other_verdicts


def _results(
    siren: Command, arguments: Sequence[str], given: str | None = None
) -> list[dict[str, Any]]:
    return [*map(json.loads, siren(*arguments, given=given).stdout.splitlines())]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]) > 0)
