"""The subcommand of `siren` that needs the export extra."""
