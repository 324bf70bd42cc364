"""A bundle: what its manifest says, and reading it with every check."""
