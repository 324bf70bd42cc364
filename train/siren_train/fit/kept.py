"""Results of a stage, kept in a work folder beside what they were computed from."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_runtime.bundle.files import replacement
from siren_runtime.errors import InputError

Arrays = Mapping[str, NDArray[Any]]
_OF = "of"


def kept_arrays(path: Path, of: Mapping[str, Any], compute: Callable[[], Arrays]) -> Arrays:
    """Return the arrays that `path` keeps, or compute and keep them where it keeps none of `of`.

    Args:
        path: an .npz file in a folder that this run has claimed.
        of: all that the arrays depend on and the folder's claim does not say, as JSON holds it.

    Raises:
        InputError: the file is damaged, or cannot be written.
    """
    described = msgspec.json.encode(of, order="sorted")
    if path.exists():
        try:
            with np.load(path) as file:
                if file[_OF].tobytes() == described:
                    return {name: file[name] for name in file.files if name != _OF}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(
                f"{path}: not a readable result: {error}; remove it, and train again"
            ) from None
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacement(path, InputError) as partial, partial.open("wb") as file:
        named: dict[str, Any] = {**found, _OF: np.frombuffer(described, np.uint8)}
        np.savez(file, **named)
    return found
