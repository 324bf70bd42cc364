"""The families there are, found by the model_type of config.json."""

from collections.abc import Callable, Mapping
from typing import Any

from siren_runtime.errors import CheckpointError

from . import bert, llama
from .base import Backbone

_Parse = Callable[[Mapping[str, Any], str], Backbone]

_PARSERS: dict[str, _Parse] = {
    **dict.fromkeys(llama.MODEL_TYPES, llama.parse),
    **dict.fromkeys(bert.MODEL_TYPES, bert.parse),
}
SUPPORTED = tuple(_PARSERS)


def parse_config(config: Mapping[str, Any], origin: str) -> Backbone:
    """Read a config.json object; `origin` names it in errors.

    Raises:
        CheckpointError: an unsupported `model_type`, a key of a wrong type or range, or a
            setting that the authored graphs do not have.
    """
    model_type = config.get("model_type")
    if model_type not in SUPPORTED:
        raise CheckpointError(
            f"{origin}: model_type {model_type!r} is not supported; supported: "
            f"{', '.join(SUPPORTED)}"
        )
    return _PARSERS[model_type](config, origin)
