"""Copies of images, compared with a slow search."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import pairwise_distances, random_embeddings, unit_vectors

from stages.classifier.copies import SAME_IMAGE, find_copies
from stages.records import Embeddings


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("block", [2**21, 7])
def test_copies_equal_a_slow_search(monkeypatch, earlier, block):
    monkeypatch.setattr("stages.classifier.copies.BLOCK", block)
    vectors = unit_vectors(12, 6, seed=0)
    offset = 0.5 * SAME_IMAGE * unit_vectors(12, 6, seed=1)
    near = F.normalize(vectors + offset)  # copies
    far = F.normalize(vectors + 4 * offset)  # no copies of the first twelve
    labels = torch.randint(3, (36,), generator=torch.Generator().manual_seed(0))
    gallery = Embeddings(torch.cat([vectors, near, far]), labels, ("a", "b", "c"))
    queries = gallery if earlier else replace(gallery, labels=gallery.labels.flip(0))
    close = pairwise_distances(queries.vectors, gallery.vectors) <= SAME_IMAGE
    expected = np.full((2, 36), -1)
    for row in range(36):
        for column in range(row if earlier else 36):
            other = int(queries.labels[row] != gallery.labels[column])
            if close[row, column] and expected[other, row] == -1:
                expected[other, row] = column
    copies = find_copies(queries, gallery, only_earlier_rows=earlier)
    np.testing.assert_array_equal(copies, expected)
    assert (expected >= 0).any(axis=1).all() and (expected < 0).any(axis=1).all()


def test_copies_of_and_among_nothing():
    gallery = random_embeddings(5, 2)
    empty = Embeddings(gallery.vectors[:0], gallery.labels[:0], gallery.classes)
    assert [len(rows) for rows in find_copies(empty, gallery)] == [0, 0]
    assert [rows.tolist() for rows in find_copies(gallery, empty)] == [[-1] * 5] * 2
