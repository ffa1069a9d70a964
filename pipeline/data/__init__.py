"""Sources of labelled images, splits, decoding and caches."""
