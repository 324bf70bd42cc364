"""A guard behind HTTP: `siren serve`."""
