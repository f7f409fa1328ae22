"""What the subcommands of `ci` do: options, then calls of the client library, then what is shown, then an exit code."""
