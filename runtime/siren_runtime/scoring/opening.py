"""What a source names: one bundle, or an ensemble of several."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from siren_runtime.bundle.ensemble import is_ensemble, read_ensemble
from siren_runtime.bundle.reader import Verify, load_bundle
from siren_runtime.bundle.shipped import find_bundle
from siren_runtime.bundle.thresholds import ResponseThresholds, SpanThreshold, Tier
from siren_runtime.errors import BundleError, InputError

from .engines import Request, open_engines
from .scorer import Scorer

BundleSource = str | os.PathLike[str]


@dataclass(frozen=True)
class Opened:
    """The scorers of a source, and what decides on their mean; None is what the scorers say."""

    scorers: list[Scorer]
    threshold: float | None = None
    tiers: Sequence[Tier] | None = None
    span_thresholds: Sequence[SpanThreshold] | None = None
    responses: ResponseThresholds | None = None


def open_source(
    source: BundleSource | Sequence[BundleSource],
    request: Request,
    *,
    verify: Verify,
    revision: str | None,
    spans: bool | None,
) -> Opened:
    """Open every bundle of a source.

    | the source | its scorers |
    | --- | --- |
    | a list | one for each bundle |
    | a folder with ensemble.json, or the id of a hub repository of one | one for each member |
    | another folder or id, or the name of a shipped guard | one |

    Args:
        spans: whether spans are to be scored; None is where a bundle has thresholds for them.

    Raises:
        BundleError, BackendError, InputError: as `Guard.load`.
    """

    def scorer_of(folder: Path, of_ensemble: bool = False) -> Scorer:
        if is_ensemble(folder):
            raise BundleError(
                f"{folder}: an ensemble cannot be a member of another; name its members"
            )
        bundle = load_bundle(folder, verify=verify)
        manifest = bundle.manifest
        own = any(manifest.decision(name).spans for name in manifest.heads)
        calibrated = own or of_ensemble
        if (spans or of_ensemble) and manifest.is_trajectory:
            raise InputError(
                f"{folder}: scores trajectories, which have no spans; load it without them, and "
                "without thresholds of spans in ensemble.json"
            )
        has_spans = calibrated if spans is None else spans
        by_stream = has_spans and manifest.head.pools_mean
        return Scorer(
            bundle, open_engines(bundle, replace(request, streaming=request.streaming or by_stream))
        )

    if not isinstance(source, (str, os.PathLike)):
        folders = [find_bundle(bundle, revision=revision) for bundle in _several(source)]
        if len({os.path.realpath(folder) for folder in folders}) < len(folders):
            raise BundleError(f"each member counts once, found {[str(f) for f in folders]}")
        return Opened([scorer_of(folder) for folder in folders])
    folder = find_bundle(source, revision=revision)
    if not is_ensemble(folder):
        return Opened([scorer_of(folder)])
    ensemble = read_ensemble(folder)
    scorers = [scorer_of(folder / member, bool(ensemble.spans)) for member in ensemble.members]
    return Opened(
        scorers,
        threshold=ensemble.threshold,
        tiers=ensemble.tiers,
        span_thresholds=ensemble.spans or None,
        responses=ensemble.responses,
    )


def _several(source: Iterable[BundleSource]) -> list[BundleSource]:
    if isinstance(source, bytes | bytearray | Mapping) or not isinstance(source, Iterable):
        raise InputError(
            f"source must be a bundle or a list of bundles, found {type(source).__name__}"
        )
    bundles = list(source)
    if len(bundles) < 2:
        raise BundleError(f"an ensemble has two members or more, found {len(bundles)}")
    return bundles
