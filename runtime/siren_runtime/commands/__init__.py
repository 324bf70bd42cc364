"""The subcommands of `siren` that need no more than the runtime."""
