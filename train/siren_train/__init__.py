"""Train SIREN heads."""
