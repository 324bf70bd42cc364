"""What guard.json says of the backbone."""

from .types import Positive, Sha256, Strict


class ModelName(Strict, frozen=True):
    """A hub repository and its commit, branch or tag; or the name of a local folder or file."""

    id: str
    revision: str | None


class Backbone(Strict, frozen=True):
    """The frozen language model; `blocks_kept` of its `blocks` are in the graph.

    `id` and `revision` are of what was read: a hub repository and its commit, or the name of a
    local folder or file, which has no revision. `digest` is a SHA-256 of its config, tokenizer and
    weights together. `named` is what the primary head names as its backbone, where that is another.
    Bundles of before have only what the head names, as `id` and `revision`.
    `context_length` is the longest sequence in tokens that the streaming graph can hold.
    `vocab_size` are the rows of the token embedding; None where that is not known.
    """

    id: str
    revision: str | None
    model_type: str
    blocks: Positive
    blocks_kept: Positive
    context_length: Positive | None = None
    vocab_size: Positive | None = None
    digest: Sha256 | None = None
    named: ModelName | None = None
