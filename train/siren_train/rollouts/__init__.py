"""Targets for prefixes of responses: how harmful what follows will be."""
