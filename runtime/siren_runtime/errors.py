"""The errors that siren-edge raises: one base, one class for each thing that can be at fault.

A message names the file, key or tensor, what was found, what was expected and what to do.
"""


class SirenError(Exception):
    """Base of every error that siren-edge raises on purpose."""


class ArtifactError(SirenError):
    """A SIREN head artifact (siren_config.json, siren.safetensors) is unusable."""


class CheckpointError(SirenError):
    """A backbone checkpoint (config.json, safetensors shards, tokenizer.json) is unusable."""


class BundleError(SirenError):
    """A guard bundle is damaged, incomplete, hostile or of another format version."""


class BackendError(SirenError):
    """The inference runtime is missing, cannot load the graph, or gave no usable score."""


class InterruptedCall(SirenError):
    """A call ended without a verdict: its deadline passed, or its caller cancelled it."""


class InputError(SirenError, ValueError):
    """What the caller passed cannot be scored."""
