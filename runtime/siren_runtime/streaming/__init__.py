"""Texts that grow, scored at the cost of their new tokens."""
