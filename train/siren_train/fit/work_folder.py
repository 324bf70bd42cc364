"""Whose a work folder is: one run's, of the stores and settings that its stages depend on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from siren_runtime.bundle.files import write_whole
from siren_runtime.errors import InputError
from siren_train.store.locks import locked
from siren_train.store.store import STORE_FILE, FeatureStore

from .settings import Settings

SETTINGS_FILE = "settings.json"
WORK_VERSION = 4  # raise it when a stage comes to another result from the same store
# Other releases of these may come to another result, too.
_DECIDING = ("numpy", "scikit-learn", "optuna", "torch")
# These settings play no part in the stages that a work folder keeps, so they may change.
_LATE = ("trials", "members", "threshold", "half", "hold_out_validation")


@contextmanager
def claimed(
    work: Path,
    stores: Sequence[FeatureStore],
    settings: Settings,
    probes_of: Path | None = None,
    noise: FeatureStore | None = None,
) -> Iterator[None]:
    """Keep `work` for this run while the block runs.

    Raises:
        InputError: it holds the work of another run, or another process is at work in it.
    """
    path = work / SETTINGS_FILE
    run = {
        "format_version": WORK_VERSION,
        "versions": {package: metadata.version(package) for package in _DECIDING},
        "stores": _described(stores),
        "settings": {
            name: value
            for name, value in msgspec.to_builtins(settings).items()
            if name not in _LATE
        },
        **({} if probes_of is None else {"probes_of": str(probes_of.resolve())}),
        **({} if noise is None else {"noise": _described([noise])}),
    }
    data = msgspec.json.format(msgspec.json.encode(run)) + b"\n"
    with locked(work, "siren train"):
        if not path.exists():
            _refuse_unclaimed(work)
            write_whole(path, data, InputError)
        elif path.read_bytes() != data:
            raise InputError(
                f"{path}: the work of a run with other settings, features or releases; remove "
                f"{work}, or choose another with --work ({STORE_FILE}, an option, siren-edge or "
                f"one of {', '.join(_DECIDING)} changed)"
            )
        yield


def check_run(work: Path, stores: Sequence[FeatureStore], settings: Settings) -> None:
    """Refuse the work folder of a run on other stores, or that reads another pooling of them.

    Raises:
        InputError: it is one, or says of no run.
    """
    path = work / SETTINGS_FILE
    try:
        run = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        found = run["stores"], run["settings"]["pooling"]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: does not say which run's the folder is: {error}") from None
    if found != (_described(stores), settings.pooling):
        raise InputError(
            f"{path}: the probes are of other features: {STORE_FILE} or the pooling is not that "
            f"of {', '.join(str(store.folder) for store in stores)}"
        )


def _refuse_unclaimed(work: Path) -> None:
    """Refuse probes of which no run is known, as an earlier release may have left them."""
    if any(work.glob("probe.*.npz")):
        raise InputError(
            f"{work}: has probes, and no {SETTINGS_FILE} that says of which features; remove it, "
            "or choose another with --work"
        )


def _described(stores: Sequence[FeatureStore]) -> Any:
    """The stores' manifests as JSON holds them."""
    return msgspec.json.decode(msgspec.json.encode([store.manifest for store in stores]))
