"""Exact search, compared with a slow one that sorts all distances."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import pairwise_distances, unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stages.search
from stages.distance import exact_distances
from stages.errors import DataError
from stages.evaluation.knn import knn
from stages.gallery import Gallery, gallery_of
from stages.search import search


def make_gallery(vectors: Tensor, block_size: int = 65_536) -> Gallery:
    ids = tuple(map(str, range(len(vectors))))
    return gallery_of(vectors, ids, embedding_digest="d", block_size=block_size)


def search_slowly(queries: Tensor, vectors: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort all distances, rounded to float32, in a stable way."""
    distances = pairwise_distances(queries, vectors)
    distances = np.where(distances <= 1e-7, 0, distances).astype(np.float32)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distances, rows, axis=1)


def assert_exact(queries: Tensor, vectors: Tensor, k: int, block_size: int = 65_536) -> None:
    rows, distances = search_slowly(queries, vectors, k)
    matches = search(queries, make_gallery(vectors, block_size), k=k)
    assert matches.rows.dtype == torch.int64 and matches.distances.dtype == torch.float32
    np.testing.assert_array_equal(matches.distances.numpy(), distances)
    np.testing.assert_array_equal(matches.rows.numpy(), rows)


@pytest.fixture(params=[2**21, 600])
def part_values(request, monkeypatch) -> None:
    """Search in one part, and in many small ones with thresholds from earlier parts."""
    monkeypatch.setattr(stages.search, "PART_VALUES", request.param)


@pytest.mark.parametrize("k", [1, 7, 300, 1000])
@pytest.mark.parametrize("dim", [1, 2, 16, 200])
def test_random_vectors(k, dim, part_values):
    assert_exact(unit_vectors(9, dim, seed=0), unit_vectors(300, dim, seed=1), k)


def test_distances_and_nearest_rows_are_those_of_knn():
    queries, vectors = unit_vectors(60, 32, seed=0), unit_vectors(5000, 32, seed=1)
    matches = search(queries, make_gallery(vectors), k=20)
    distances = exact_distances(queries, vectors)
    assert torch.equal(matches.distances, distances.sort(dim=1, stable=True).values[:, :20])
    assert torch.equal(matches.distances, distances.gather(1, matches.rows))
    nearest = knn(queries, vectors, torch.zeros(5000, dtype=torch.int64), k=1)
    np.testing.assert_array_equal(matches.rows[:, 0].numpy(), nearest.nearest)
    np.testing.assert_array_equal(matches.distances[:, 0].numpy(), nearest.distance)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_copies_are_ordered_by_row(k, part_values):
    vectors = unit_vectors(10, 16, seed=2).repeat(20, 1)
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    assert_exact(vectors[:10], vectors[order], k)
    matches = search(vectors[:10], make_gallery(vectors[order]), k=20)
    assert bool((matches.distances == 0).all())  # every query finds its 20 copies
    assert bool((matches.rows.diff(dim=1) > 0).all())


@pytest.mark.parametrize("noise", [1e-2, 1e-4, 1e-6, 1e-8, 0])
@pytest.mark.parametrize("k", [1, 10])
def test_collapsed_vectors(noise, k, part_values):
    """Distances of float32 products would be rounding errors only."""
    generator = torch.Generator().manual_seed(3)
    vectors = F.normalize(1 + noise * torch.randn(400, 64, generator=generator))
    assert_exact(vectors[:6], vectors, k)
    assert_exact(unit_vectors(6, 64, seed=4), vectors, k)


def test_near_duplicates_among_other_vectors(part_values):
    vectors = unit_vectors(200, 32, seed=5)
    for scale in (1e-3, 1e-5, 1e-6, 1e-7):
        noise = scale * unit_vectors(100, 32, seed=6)
        vectors = torch.cat([vectors, F.normalize(vectors[:100] + noise)])
    assert_exact(vectors[:20], vectors, 8)


@pytest.mark.parametrize("ascending", [True, False])
def test_sorted_gallery(ascending, part_values):
    """Search parts of which each has nearer vectors than the one before, or none has."""
    query, vectors = unit_vectors(1, 8, seed=7), unit_vectors(1000, 8, seed=8)
    order = pairwise_distances(query, vectors)[0].argsort()
    vectors = vectors[torch.from_numpy(order if ascending else order[::-1].copy())]
    assert_exact(query, vectors, 25)


def test_lengths_that_deviate_as_much_as_allowed(part_values):
    factors = torch.linspace(1 - 9e-4, 1 + 9e-4, 500)[:, None]
    vectors = unit_vectors(1, 16, seed=9) * factors
    assert_exact(unit_vectors(5, 16, seed=10), vectors.flip(0), 10)
    assert_exact(vectors[::100].contiguous(), vectors, 10)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_small_whole_numbers(data):
    """Normalised vectors of small whole numbers have many equal distances."""
    dim, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    row = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim).filter(any)
    rows = data.draw(st.lists(row, min_size=count, max_size=count))
    vectors = F.normalize(torch.tensor(rows, dtype=torch.float32))
    queries = vectors[: data.draw(st.integers(1, 5))]
    k = data.draw(st.integers(1, 50))
    assert_exact(queries, vectors, k, block_size=data.draw(st.integers(1, 50)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.search, "PART_VALUES", data.draw(st.integers(1, 60)))
        patch.setattr(stages.search, "KEPT_KEYS", data.draw(st.integers(1, 60)))
        assert_exact(queries, vectors, k)


@pytest.mark.parametrize("block_size", [1, 7, 299, 300])
def test_blocks_do_not_change_the_result(block_size):
    vectors = F.normalize(1 + 1e-5 * unit_vectors(300, 24, seed=11))
    expected = search(vectors[:9], make_gallery(vectors), k=30)
    matches = search(vectors[:9], make_gallery(vectors, block_size), k=30)
    assert torch.equal(matches.rows, expected.rows)
    assert torch.equal(matches.distances, expected.distances)


def test_queries_do_not_change_each_other():
    vectors = F.normalize(1 + 1e-5 * unit_vectors(300, 24, seed=12))
    together = search(vectors, make_gallery(vectors), k=5)
    for row in range(0, 300, 37):
        alone = search(vectors[row : row + 1], make_gallery(vectors), k=5)
        assert torch.equal(alone.rows[0], together.rows[row])
        assert torch.equal(alone.distances[0], together.distances[row])


@pytest.mark.parametrize("queries, count", [(0, 3), (3, 0), (1, 1)])
def test_shapes_of_small_inputs(queries, count):
    gallery = make_gallery(unit_vectors(count, 4, seed=0))
    matches = search(unit_vectors(queries, 4, seed=1), gallery, k=5)
    assert matches.rows.shape == matches.distances.shape == (queries, min(5, count))


def test_few_distances_are_computed_exactly(monkeypatch):
    """The search is fast only if the products exclude nearly all pairs."""
    pairs = []

    def counting(a: Tensor, b: Tensor, rows_a: Tensor, rows_b: Tensor) -> Tensor:
        pairs.append(len(rows_a))
        return original(a, b, rows_a, rows_b)

    original = stages.search.paired_distances
    monkeypatch.setattr(stages.search, "paired_distances", counting)
    monkeypatch.setattr(stages.search, "PART_VALUES", 2**15)
    random, queries = unit_vectors(20_000, 32, seed=13), unit_vectors(10, 32, seed=14)
    for vectors, most in (
        (random, 100),  # about k ln(number of parts) per query
        (F.normalize(1 + 1e-4 * random), 100),
        (unit_vectors(1, 32, seed=15).repeat(20_000, 1), 2 * 2**10),
    ):
        pairs.clear()
        search(queries, make_gallery(vectors), k=10)
        assert sum(pairs) < most * len(queries)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e20, -3e38])
@pytest.mark.parametrize("row", [0, 250, 299])
def test_invalid_gallery_vector(value, row, part_values):
    vectors = unit_vectors(300, 8, seed=16)
    vectors[row, 3] = value
    with pytest.raises(DataError, match="unit vectors"):
        search(unit_vectors(2, 8, seed=17), make_gallery(vectors), k=1)


@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e9, 9e17])
def test_other_lengths_are_exact_too(scale):
    vectors = scale * unit_vectors(300, 8, seed=18)
    assert_exact(vectors[:9], vectors, 7)


def test_rows_must_fit_into_keys():
    class Large(Gallery):
        def __len__(self) -> int:
            return 2**32 + 1

    gallery = Large(lambda: pytest.fail("read"), (), torch.empty(0).long(), (), "d")
    with pytest.raises(DataError, match="4,294,967,297; search at most 4,294,967,296"):
        search(torch.eye(2), gallery, k=1)


@pytest.mark.parametrize(
    "k, value", [(0, 1.0), (-1, 1.0), (1, torch.nan), (1, torch.inf), (1, 1e20)]
)
def test_invalid_arguments(k, value):
    queries = torch.tensor([[value, 0.0]])
    with pytest.raises(ValueError):
        search(queries, make_gallery(torch.eye(2)), k=k)


@pytest.mark.parametrize("count", [2, 4])
def test_number_of_vectors_that_differs_from_the_ids(count):
    def blocks() -> Iterator[Tensor]:
        yield torch.eye(4)[:count]

    gallery = Gallery(blocks, ("a", "b", "c"), torch.full((3,), -1), (), "d")
    with pytest.raises(DataError, match="3"):
        search(torch.eye(4), gallery, k=1)
