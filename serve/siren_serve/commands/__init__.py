"""The `siren serve` subcommand."""
