"""Stage one: train the embedding with triplet loss."""
