"""Kinds of heads, one file each."""
