"""Tiers, from a file or by name."""

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec

from siren_runtime.bundle.thresholds import Tier, check_tiers
from siren_runtime.errors import InputError


def read_tiers(path: Path) -> list[Tier]:
    """Read a tier file: a JSON object of names and thresholds, such as {"block": 0.9}.

    Raises:
        InputError: it is not that, a name repeats, or a threshold is outside 0 to 1.
        BundleError: two thresholds are equal.
    """
    try:
        data = path.read_bytes()
        named = msgspec.json.decode(data, type=dict[str, float])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: expected an object of tier names and thresholds: {error}"
        ) from None
    names = [name for name, _ in json.loads(data, object_pairs_hook=list)]
    if len(names) > len(named):
        raise InputError(f"{path}: names a tier twice, found {', '.join(names)}")
    return make_tiers(named, str(path))


def make_tiers(named: Mapping[str, float], origin: str) -> list[Tier]:
    """Return the tiers by falling threshold, checked as those of a manifest are.

    Args:
        origin: the file or option that they come from, for error messages.

    Raises:
        InputError: there is none, one has no name, or a threshold is outside 0 to 1.
        BundleError: two thresholds are equal.
    """
    if not named:
        raise InputError(f"{origin}: no tiers")
    for name, threshold in named.items():
        if not name or not 0.0 <= threshold <= 1.0:
            raise InputError(
                f"{origin}: tier {name!r} is {threshold}; expected a name, and a threshold from 0 "
                "to 1"
            )
    tiers = [Tier(*item) for item in sorted(named.items(), key=lambda item: -item[1])]
    check_tiers(tiers, origin)
    return tiers
