"""Networks: images to unit vectors, and vectors to class log-probabilities."""
