"""Exact distances, and sorting rows of distances on one and on several threads."""

import pytest
import torch
import torch.nn.functional as F
from factories import pairwise_distances, unit_vectors

from stages.distance import GalleryDistances, exact_distances, paired_distances, sort_rows


def test_sorted_rows_equal_torch_sort():
    generator = torch.Generator().manual_seed(10)
    normal = torch.randn(300, 300, dtype=torch.float64, generator=generator)
    values = F.normalize(normal, dim=1).abs()
    values[3] = values[4]
    values[5, 7:] = float("inf")
    for distances in (values, values.float()):
        ascending, order = sort_rows(distances)
        torch.testing.assert_close(ascending, distances.sort(dim=1).values, rtol=0, atol=0)
        torch.testing.assert_close(distances.gather(1, order), ascending, rtol=0, atol=0)
        assert (order.sort(dim=1).values == torch.arange(300)).all()


@pytest.mark.parametrize("kept", [True, False])
def test_gallery_distances_equal_exact_distances(kept, monkeypatch):
    """Blocks and slices of the gallery do not matter, nor whether its factors are kept."""
    queries, gallery = unit_vectors(7, 5, seed=0), unit_vectors(40, 5, seed=1)
    gallery[:7] = queries
    expected = exact_distances(queries, gallery)
    monkeypatch.setattr("stages.distance.GALLERY_BLOCK", 9)
    monkeypatch.setattr("stages.distance.KEPT_VALUES", 200 if kept else 199)
    distances = GalleryDistances(gallery)
    for columns in (slice(None), slice(3, 30), slice(40, 40)):
        torch.testing.assert_close(distances.to(queries, columns), expected[:, columns])


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-6, 0.0])
def test_paired_distances_of_near_duplicates(scale, monkeypatch):
    """They are correct to float32, and do not depend on the other pairs."""
    a = unit_vectors(50, 40, seed=2)
    b = F.normalize(a + scale * unit_vectors(50, 40, seed=3))
    rows = torch.arange(50)
    distances = paired_distances(a, b, rows, rows.flip(0))
    expected = torch.from_numpy(pairwise_distances(a, b.flip(0)).diagonal().copy())
    expected[expected <= 1e-7] = 0
    torch.testing.assert_close(distances, expected.float(), rtol=2e-7, atol=0)
    monkeypatch.setattr("stages.distance.PAIR_VALUES", 120)
    assert torch.equal(paired_distances(a, b, rows, rows.flip(0)), distances)
    assert torch.equal(paired_distances(a, b, rows[7:8], rows[42:43]), distances[7:8])
