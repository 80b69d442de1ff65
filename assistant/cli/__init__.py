"""The `thumbwise` command: one module for each subcommand."""
