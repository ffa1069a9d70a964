"""Stage two: a linear classifier on frozen embeddings."""
