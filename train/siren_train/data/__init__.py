"""Labelled text, row by row."""
