"""Commands, files, terminal and devices around the computation in `stages`."""
