"""The one way a peer says that it cannot run here."""


class PeerMissing(Exception):  # a result, not a failure
    """A peer cannot run here or on this model; the message says why, and what to install."""
