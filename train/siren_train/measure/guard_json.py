"""What a calibration writes: guard.json, whole or not at all."""

from pathlib import Path

from siren_runtime.bundle.files import write_whole
from siren_runtime.bundle.manifest import MANIFEST_FILE, Manifest, decode, encode
from siren_runtime.errors import InputError


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write a bundle's guard.json, and return it as it is read again.

    Raises:
        BundleError: it contradicts itself; the old one stays.
        InputError: guard.json cannot be written.
    """
    data = encode(manifest)
    read = decode(data, str(folder / MANIFEST_FILE))
    write_whole(folder / MANIFEST_FILE, data, InputError)
    return read
