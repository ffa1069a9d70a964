"""Nearest pairs equal a search of the whole distance matrix, with ties and excluded pairs."""

import numpy as np
import pytest
import torch
from factories import unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.distance import exact_distances
from stages.errors import DataError
from stages.evaluation import nearest
from stages.evaluation.nearest import query_blocks_of


def search_by_loop(distances: np.ndarray, k: int) -> list[tuple[int, int, float]]:
    pairs = []
    for row, values in enumerate(distances):
        kth_distance = sorted(values)[k - 1]
        near = [(value, column) for column, value in enumerate(values) if value <= kth_distance]
        pairs += [(row, column, value) for value, column in sorted(near)]
    return pairs


def as_list(pairs, start=0):
    rows = (pairs.rows + start).tolist()
    return list(zip(rows, pairs.columns.tolist(), pairs.distances.tolist(), strict=True))


@settings(deadline=None, max_examples=60)
@given(
    gallery=st.integers(1, 150),
    k=st.integers(1, 4),
    points=st.integers(1, 40),
    dim=st.integers(1, 9),
)
def test_pairs_equal_a_loop(gallery, k, points, dim):
    """Few distinct points give many equal distances, also at the k-th neighbour."""
    vectors = unit_vectors(points, dim, seed=points)
    generator = torch.Generator().manual_seed(gallery)
    columns = vectors[torch.randint(0, points, (gallery,), generator=generator)]
    queries, k = torch.cat([vectors[:5], unit_vectors(3, dim, seed=1)]), min(k, gallery)
    found = []
    for block in query_blocks_of(queries, columns):
        found += as_list(block.nearest(k), block.start)
    expected = search_by_loop(exact_distances(queries, columns).numpy(), k)
    assert [pair[:2] for pair in found] == [pair[:2] for pair in expected]
    np.testing.assert_allclose(
        [pair[2] for pair in found], [pair[2] for pair in expected], rtol=1e-6
    )


def test_blocks_and_float64_change_nothing(monkeypatch):
    queries, gallery = unit_vectors(40, 5, seed=1), unit_vectors(300, 5, seed=2)
    (block,) = query_blocks_of(queries, gallery)
    expected = as_list(block.nearest(3))
    assert len(expected) == 120
    limits = {"BLOCK": 1, "MIN_QUERIES": 7, "CONVERTED_VALUES": 60, "KEPT_VALUES": 0}
    for name, value in {**limits, "FEW": 0, "MANY": 0}.items():
        monkeypatch.setattr(nearest, name, value)
        found = []
        for block in query_blocks_of(queries, gallery):
            found += as_list(block.nearest(3), block.start)
        assert [pair[:2] for pair in found] == [pair[:2] for pair in expected], name


def test_excluded_pairs_are_not_found():
    vectors = unit_vectors(100, 4, seed=3)
    (block,) = query_blocks_of(vectors, vectors)
    rows = np.arange(100)
    block.scores[rows, rows] = np.inf
    distances = exact_distances(vectors, vectors).numpy()
    distances[rows, rows] = np.inf
    assert as_list(block.nearest(2)) == search_by_loop(distances, 2)


def test_bytes_equal_floating_point_numbers():
    pixels = torch.randint(0, 256, (60, 30), generator=torch.Generator().manual_seed(4))
    pixels = pixels.to(torch.uint8)
    (block,) = query_blocks_of(pixels[:9], pixels[9:])
    distances = (pixels[:9, None].double() - pixels[9:].double()).norm(dim=2).float().numpy()
    assert as_list(block.nearest(5)) == search_by_loop(distances, 5)


@pytest.mark.parametrize("part", ["queries", "gallery"])
def test_vectors_that_are_not_finite_are_an_error(part):
    vectors = {"queries": torch.eye(3), "gallery": torch.eye(3)}
    vectors[part] = torch.full((3, 3), torch.nan)
    with pytest.raises(DataError, match="not finite"):
        list(query_blocks_of(**vectors))
