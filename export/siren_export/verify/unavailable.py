"""What an export says where there is nothing to compare it with."""


class ReferenceUnavailable(Exception):
    """No reference can be had here, for the reason that the message says."""
