"""Computation: networks, training, evaluation. Opens no file and prints nothing."""
