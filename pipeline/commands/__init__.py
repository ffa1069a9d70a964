"""One module per command, callable without the command line."""
