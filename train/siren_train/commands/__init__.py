"""The subcommands of `siren` that need the train extra."""
