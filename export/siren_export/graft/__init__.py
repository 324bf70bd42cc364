"""A generator's own graph, given the outputs that a head reads."""
