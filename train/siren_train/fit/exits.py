"""Exits: heads of the first blocks, trained as the head is and put beside it.

A layer's probes do not depend on how many layers are read, so exits take the head's.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from siren_export.heads.base import EXITS_FOLDER
from siren_export.heads.exits import exit_folder
from siren_runtime.bundle.files import replacement
from siren_runtime.bundle.progress import Progress, suffixed
from siren_runtime.errors import InputError
from siren_train.store.store import FeatureStore

from .pipeline import train
from .report import write_report
from .settings import Settings
from .work_folder import claimed


def train_exits(
    stores: Sequence[FeatureStore],
    output: Path,
    work: Path,
    settings: Settings,
    depths: Sequence[int],
    *,
    noise: FeatureStore | None,
    workers: int,
    progress: Progress,
) -> dict[int, float]:
    """Train an exit behind each number of blocks.

    Args:
        stores, output, work, settings, noise: those that the head was trained with.

    Returns:
        The cross-validated macro-F1 of each, by its depth.
    """
    found = {}
    for depth in depths:
        folder = exit_folder(output, depth)
        own = exit_folder(work, depth)
        of_depth = msgspec.structs.replace(settings, max_layer=depth)
        with claimed(own, stores, of_depth, noise=noise):
            _take_probes(work, own, depth)
        report = train(
            stores,
            folder,
            own,
            of_depth,
            noise=noise,
            workers=workers,
            progress=suffixed(progress, f", {depth} blocks"),
        )
        write_report(report, folder)
        found[depth] = report.cross_validation
    return found


def _take_probes(work: Path, own: Path, depth: int) -> None:
    """Put the head's probes of the first layers, of all folds too, where the exit's would be."""
    for layer in range(depth):
        for path in work.glob(f"**/probe.{layer}.npz"):
            place = own / path.relative_to(work)
            if EXITS_FOLDER not in path.relative_to(work).parts and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                with replacement(place, InputError) as partial:
                    shutil.copyfile(path, partial)
