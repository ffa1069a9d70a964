"""Sorting rows of distances, on one and on several threads."""

import torch
import torch.nn.functional as F

from stages.distance import sort_rows


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
