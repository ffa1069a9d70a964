"""kNN equals a slow vote in plain Python and does not depend on the order of the gallery."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import random_embeddings, unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.distance import exact_distances
from stages.evaluation.knn import knn, nearest_rows


def vote_by_loop(distances, gallery_labels, k):
    kth_distance = sorted(distances)[min(k, len(distances)) - 1]
    voters = [row for row in range(len(distances)) if distances[row] <= kth_distance]
    votes, nearest = {}, {}
    for label in set(gallery_labels):
        own = [distances[row] for row in voters if gallery_labels[row] == label]
        votes[label] = len(own)
        nearest[label] = min(own, default=math.inf)
    return min(votes, key=lambda label: (-votes[label], nearest[label], label))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=20),
    st.integers(1, 30),
    st.booleans(),
    st.integers(0, 999),
)
def test_knn_equals_loop(labels, k, tied, seed):
    gallery, queries = unit_vectors(len(labels), 3, seed=seed), unit_vectors(5, 3, seed=seed + 1)
    if tied:  # corners of a cube: many equal distances, also at the k-th neighbour
        gallery, queries = gallery.sign() / math.sqrt(3), queries.sign() / math.sqrt(3)
    neighbours = knn(queries, gallery, torch.tensor(labels), k=k)
    distances = exact_distances(queries, gallery).numpy()
    expected = [vote_by_loop(row.tolist(), labels, k) for row in distances]
    assert neighbours.labels.tolist() == expected
    np.testing.assert_array_equal(neighbours.distance, distances.min(axis=1))
    assert neighbours.nearest.tolist() == distances.argmin(axis=1).tolist()


def test_knn_does_not_depend_on_the_gallery_order():
    gallery = torch.eye(2)[[0, 0, 0, 1, 1]]
    labels = torch.tensor([1, 1, 0, 2, 2])
    query = torch.eye(2)[[0]]
    order = torch.tensor([2, 4, 0, 3, 1])
    assert knn(query, gallery, labels, k=1).labels == 1
    assert knn(query, gallery[order], labels[order], k=1).labels == 1


def test_block_size_does_not_matter(monkeypatch):
    labels = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(0))
    vectors = unit_vectors(50, 4, seed=2)
    expected = knn(vectors, vectors, labels, k=3)
    monkeypatch.setattr("stages.evaluation.nearest.BLOCK", 50 * 3)
    monkeypatch.setattr("stages.evaluation.nearest.MIN_QUERIES", 1)
    neighbours = knn(vectors, vectors, labels, k=3)
    np.testing.assert_array_equal(neighbours.labels, expected.labels)
    np.testing.assert_array_equal(neighbours.nearest, expected.nearest)
    np.testing.assert_array_equal(neighbours.distance, expected.distance)


@pytest.mark.parametrize(("k", "gallery"), [(0, 3), (1, 0)])
def test_knn_needs_a_neighbour(k, gallery):
    with pytest.raises(ValueError, match=f"{k} with {gallery}"):
        knn(torch.eye(3), torch.eye(3)[:gallery], torch.arange(gallery), k=k)


def test_near_duplicates_are_distinguished():
    base = unit_vectors(1, 128, seed=9).double()
    direction = unit_vectors(1, 128, seed=10).double()
    near = torch.cat([F.normalize(base + step * direction, dim=1) for step in (1e-5, 2e-5, 3e-5)])
    distances = exact_distances(base, near)[0]
    assert (distances[:-1] < distances[1:]).all()
    expected = (near - base).norm(dim=1)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-4, atol=0)
    assert exact_distances(base, base).item() == 0


def test_nearest_rows_are_in_order():
    vectors = random_embeddings(50, 3).vectors
    expected = torch.cdist(vectors[:7].double(), vectors.double()).argsort(1)[:, :4].numpy()
    np.testing.assert_array_equal(nearest_rows(vectors[:7], vectors, count=4), expected)
