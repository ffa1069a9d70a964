"""The embedding network and the classification head: images to vectors to probabilities."""
