"""A generator that is guarded by its own forward pass."""
