"""The settings of a training run."""

from typing import Any, Literal

import msgspec

from siren_export.heads.selected import MeanPooling
from siren_runtime.bundle.heads import Pooling
from siren_runtime.errors import InputError
from siren_train.store.store import StoreManifest, Target

LayerWeighting = Literal["adaptive", "uniform"]

# Of a probe's L1 penalty, as shares of the smallest that makes every weight zero.
STRENGTHS = (0.1, 0.03, 0.01, 0.003, 0.001)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a training run is asked for.

    Attributes:
        pooling: of the store, what the head reads.
        head: what it tells: the classes of rows, by an MLP or a polynomial, the labels that their
            categories name, the harm of what follows a prefix, or the classes of trajectories.
        shares: of each probe's |weight|, those that the search may draw.
        hidden: widths of an MLP's first hidden layer, those that the search may draw.
        weighting: how layers are weighted.
        max_layer: how many layers, from the first, the head may read; None is all.
        strengths: of the probes, those to choose from.
        trials: of the search.
        members: MLPs that the final head averages.
        seed: of folds, search and head.
        threshold: written into the artifact.
        half: store the head in float16.
        hold_out_validation: fit the final head on the train rows alone, so that the validation
            rows can calibrate it.
    """

    pooling: Pooling = "residual_mean"
    head: Target = "harm"
    shares: tuple[float, ...] = (0.6, 0.8, 0.9, 1.0)
    hidden: tuple[int, ...] = (64, 128, 256)
    weighting: LayerWeighting = "adaptive"
    max_layer: int | None = None
    strengths: tuple[float, ...] = STRENGTHS
    trials: int = 16
    members: int = 4
    seed: int = 0
    threshold: float = 0.5
    half: bool = True
    hold_out_validation: bool = False

    @property
    def mean_pooling(self) -> MeanPooling:
        """The pooling of a head that reads means.

        Raises:
            InputError: it is of the last token.
        """
        if self.pooling == "residual_mean" or self.pooling == "mlp_mean":
            return self.pooling
        raise InputError(f"a head of kind {self.head!r} reads means, not {self.pooling}")


def artifact_facts(store: StoreManifest, settings: Settings) -> dict[str, Any]:
    """What every artifact says beside its head, as all that write one take it."""
    return {
        "model_id": store.model_id,
        "model_revision": store.model_revision,
        "max_length": store.max_length,
        "threshold": settings.threshold,
    }
