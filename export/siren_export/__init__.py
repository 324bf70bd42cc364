"""Compile a SIREN head and its backbone into a guard bundle."""
