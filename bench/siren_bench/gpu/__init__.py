"""Engines on a GPU, each beside the device's measured ceilings."""
