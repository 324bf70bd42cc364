"""The parts of scripts/compare-exports: make models, digest what a tree exports, compare.

export_digests.py make FOLDER [NAME ...]      tiny backbones and heads, and the default guard
export_digests.py export FOLDER DIGESTS       with the packages that PYTHONPATH names
export_digests.py compare BASE THIS           exit status 1 where digests differ
"""

import argparse
import hashlib
import importlib
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TARGETS = ("onnxruntime", "tensorrt", "tensorrt-rtx", "tensorrt10")
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
MLP_MEAN = ("qwen3", "llama-mlp-bias", "bert")  # of these, heads that read the MLP's output too
DEFAULT_GUARD = "minilm"
CALIBRATION = [
    "How do I bake bread?",
    "The quick brown fox jumps over the lazy dog while five boxing wizards watch.",
    "Explain photosynthesis to a five-year-old in two sentences.",
    "He said he would hurt anyone who came near the door.",
]
_VOLATILE = ("created", "versions", "format_version")


def make(folder: Path, names: list[str]) -> None:
    """Write `folder`/NAME/backbone and its heads, by the makers of tests/models.py."""
    from backbones import BACKBONES
    from models import make_artifact, make_backbone

    unknown = set(names) - {*BACKBONES, DEFAULT_GUARD}
    if unknown:
        sys.exit(
            f"no such model: {', '.join(sorted(unknown))}; there are "
            f"{', '.join((*BACKBONES, DEFAULT_GUARD))}"
        )
    for name in names or (*BACKBONES, DEFAULT_GUARD):
        place = folder / name
        if name == DEFAULT_GUARD:
            place.mkdir(parents=True)
            continue
        backbone = make_backbone(place / "backbone", BACKBONES[name])
        make_artifact(place / "residual_mean", backbone)
        if name in MLP_MEAN:
            make_artifact(place / "mlp_mean", backbone, layers=[0, 2], pooling="mlp_mean")


def export(folder: Path, digests: Path) -> None:
    """Export every head of `folder` in every way, and write what came out as JSON."""
    # An editable install would lend a tree the modules that it does not have.
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if "__editable__" not in getattr(finder, "__module__", "")
    ]
    load_artifact = _from("load_artifact", "heads.registry", "artifact")
    load_checkpoint = _from("load_checkpoint", "sources.checkpoint", "checkpoint")
    found: dict[str, dict[str, str]] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        if place.name == DEFAULT_GUARD:
            recipe = _from("find_recipe", "sources.recipes", "recipes")(DEFAULT_GUARD)
            backbone, heads = recipe.backbone(), [recipe.artifact]
        else:
            backbone = place / "backbone"
            heads = sorted(path for path in place.iterdir() if path != backbone)
        for head in heads:
            started = time.perf_counter()
            artifact, checkpoint = load_artifact(str(head)), load_checkpoint(str(backbone))
            for setting, options in _settings(checkpoint):
                found[f"{place.name} {head.name} {setting}"] = _digest(
                    artifact, checkpoint, options
                )
            seconds = time.perf_counter() - started
            print(f"  {place.name} {head.name} in {seconds:.0f} s", file=sys.stderr)
    digests.write_text(json.dumps(found, indent=1))


def compare(base: Path, this: Path) -> int:
    """Print which exports differ, and in what."""
    old, new = (json.loads(path.read_text()) for path in (base, this))
    different = 0
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, {}), new.get(name, {})
        files = sorted(
            file for file in before.keys() | after.keys() if before.get(file) != after.get(file)
        )
        if not files:
            continue
        different += 1
        print(f"{name}: {', '.join(files)}")
        for file in files:
            if file in ("error", "guard.json"):
                print(f"  base {before.get(file)}\n  this {after.get(file)}")
    made = sum("error" not in files for files in new.values())
    print(
        f"{len(new)} exports, {made} of them made and {len(new) - made} refused: "
        + (f"{different} differ" if different else "all equal")
    )
    return 1 if different else 0


def _from(name: str, new: str, old: str) -> Any:
    """What the module `new` of siren_export calls `name`, or, before there was one, `old`."""
    try:
        module = importlib.import_module(f"siren_export.{new}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("siren_export"):
            raise
        module = importlib.import_module(f"siren_export.{old}")
    return getattr(module, name)


def _settings(checkpoint: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every way to export: its name and the options of export_bundle."""
    for target, precision in itertools.product(TARGETS, PRECISIONS):
        options = {"target": target, "precision": precision}
        yield f"{target} {precision}", {**options, "calibration": CALIBRATION}
        if precision in ("int8", "int4"):
            yield f"{target} {precision} uncalibrated", options
    bert = checkpoint.config["model_type"] == "bert"
    matrices = (
        {"layer.0/attention/value/weight", "layer.0/mlp/output/weight"}
        if bert
        else {"layers.0/self_attn/v_proj/weight", "layers.0/mlp/down_proj/weight"}
    )
    for precision in ("fp32", "int8", "int4"):
        yield (
            f"onnxruntime {precision} kept",
            {
                "precision": precision,
                "keep_float": frozenset(matrices),
            },
        )


def _digest(artifact: Any, checkpoint: Any, options: dict[str, Any]) -> dict[str, str]:
    """The SHA-256 of each file of a bundle, and its guard.json; or the error."""
    export_bundle: Callable[..., object] = _from("export_bundle", "export", "export")
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        try:
            export_bundle(artifact, checkpoint, bundle, **options)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}".replace(scratch, "")}
        digests = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(bundle.iterdir())
        }
        digests["guard.json"] = _normalised(bundle / "guard.json")
        shutil.rmtree(bundle)
    return digests


def _normalised(path: Path) -> str:
    """guard.json in the form of format 2, without what changes from one export to the next."""
    manifest = json.loads(path.read_text())
    for key in _VOLATILE:
        manifest.pop(key)
    if "head" in manifest:
        manifest["heads"] = {"harm": manifest.pop("head")}
    if "trials" in (manifest.get("tuning") or {}):
        manifest["tuning"]["candidates"] = manifest["tuning"].pop("trials")
    return json.dumps(manifest, sort_keys=True)


def main() -> int:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("names", nargs="*")
    exporting = commands.add_parser("export")
    exporting.add_argument("folder", type=Path)
    exporting.add_argument("digests", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("base", type=Path)
    comparing.add_argument("this", type=Path)
    options = parser.parse_args()
    if options.command == "make":
        make(options.folder, options.names)
    elif options.command == "export":
        export(options.folder, options.digests)
    else:
        return compare(options.base, options.this)
    return 0


if __name__ == "__main__":
    sys.exit(main())
