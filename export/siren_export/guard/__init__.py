"""A backbone and its head, joined into the graphs of a bundle."""
