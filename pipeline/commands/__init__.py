"""One module per command: what it does, callable without a terminal."""
