"""Histograms and hardest triplets equal slow loops; maps of degenerate inputs are finite."""

import numpy as np
import pytest
import torch
from factories import pairwise_distances, random_embeddings, unit_vectors

from stages.evaluation.explore import explore, flat_map
from stages.records import Embeddings


def test_histograms_equal_loop():
    test = random_embeddings(40, 3)
    exploration = explore(test)
    distances = pairwise_distances(test.vectors, test.vectors)
    positives, negatives = [], []
    for i in range(40):
        for j in range(i):
            same_class = test.labels[i] == test.labels[j]
            (positives if same_class else negatives).append(distances[i, j])
    edges = np.linspace(0, 2, 51)
    for counts, expected in (
        (exploration.positives, np.histogram(positives, bins=edges)[0]),
        (exploration.negatives, np.histogram(negatives, bins=edges)[0]),
    ):
        assert counts.sum() == expected.sum() > 0
        assert np.abs(counts - expected).sum() <= 2  # float32 rounding at the edge of a bin


def test_hardest_triplets_equal_loop():
    test = random_embeddings(40, 3)
    exploration = explore(test, triplets=5)
    distances = pairwise_distances(test.vectors, test.vectors)
    gaps = []
    for anchor in range(40):
        same_class = (test.labels == test.labels[anchor]).numpy()
        nearest_negative = distances[anchor, ~same_class].min()
        same_class[anchor] = False
        gaps.append((nearest_negative - distances[anchor, same_class].max(), anchor))
    hardest = sorted(gaps)[:5]
    assert exploration.triplets[:, 0].tolist() == [anchor for _, anchor in hardest]
    np.testing.assert_allclose(
        exploration.sides[:, 1] - exploration.sides[:, 0], [gap for gap, _ in hardest], atol=1e-5
    )


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0]])
def test_no_triplet_without_positive_or_negative(labels):
    test = Embeddings(unit_vectors(3, 8, seed=0), torch.tensor(labels), ("a", "b", "c"))
    assert len(explore(test).triplets) == 0


@pytest.mark.parametrize(
    "vectors", [np.ones((1, 4)), np.ones((40, 4)) / 2, np.eye(12)[:, :2] + 0.1, np.eye(5)]
)
def test_map_of_degenerate_inputs_is_finite(vectors):
    assert np.isfinite(flat_map(vectors.astype(np.float32))).all()
