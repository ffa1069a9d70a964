"""Stage three: evaluate an embedding and its classifier on held-out images."""
