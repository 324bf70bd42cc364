"""Run a bundle's score graph from a plan that TensorRT or TensorRT-RTX compiled.

What decides, pads and splits is tested without a GPU; what runs on one, gpu.py and engine.py of
`siren_runtime.backends.tensorrt`, has not been run.
"""

from collections.abc import Sequence

from siren_runtime.backends.padding import PaddedBackend
from siren_runtime.bundle.reader import Bundle

from . import engine
from .gpu import compute_capability
from .library import Flavor, load_library
from .plan import find_plan


def open_plan(
    bundle: Bundle, flavor: Flavor, buckets: Sequence[int] | None = None
) -> PaddedBackend:
    """Open the bundle's newest plan that runs here.

    Raises:
        BackendError: the library, cuda-python or a GPU is missing; no plan matches, and then the
            message says of each why and what would; or the plan cannot be loaded.
        InputError: the buckets do not ascend from 1.
    """
    library = load_library(flavor)
    plan = find_plan(bundle, "score", library, compute_capability())
    loaded = engine.Engine(plan, library, bundle.manifest.graphs["score"])
    return PaddedBackend(
        flavor, plan.record.profiles, lambda profile: engine.ScoreRunner(loaded, profile), buckets
    )
