"""Exact distances, and sorting rows of distances on one and on several threads."""

import pytest
import torch
import torch.nn.functional as F
from factories import unit_vectors

from stages.distance import GalleryDistances, exact_distances, sort_rows


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
