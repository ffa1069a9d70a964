"""Stage two: train a classifier on the frozen embedding."""
