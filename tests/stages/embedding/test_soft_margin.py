"""The separable soft-margin sum against softplus of every pair."""

import math

import pytest
import torch
import torch.nn.functional as F

from stages.embedding.soft_margin import soft_margin_sum


@pytest.mark.parametrize("farthest", [1e-6, 2.0, 4.0, 30.0])
def test_sum_and_derivatives_equal_softplus_of_every_pair(farthest):
    generator = torch.Generator().manual_seed(0)
    to_same_class = torch.rand(3, 4, dtype=torch.float64, generator=generator) * farthest
    to_negatives = torch.rand(3, 6, dtype=torch.float64, generator=generator) * farthest
    is_positive = torch.tensor([[False, True, True, True]] * 2 + [[False, True, False, False]])
    negative_count = torch.tensor([[6], [4], [0]])
    is_negative = torch.arange(6) < negative_count

    x, y = to_same_class.clone().requires_grad_(), to_negatives.clone().requires_grad_()
    pairs = F.softplus(x[:, :, None] - y[:, None, :], threshold=math.inf)  # (3, 4, 6)
    expected = (pairs * is_positive[:, :, None] * is_negative[:, None, :]).sum()
    expected.backward()

    filled = to_negatives.masked_fill(~is_negative, torch.finfo(torch.float64).max)
    loss, d_same_class, d_negatives = soft_margin_sum(
        to_same_class, filled, is_positive, negative_count
    )
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(d_same_class, x.grad, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(d_negatives, y.grad, rtol=1e-9, atol=1e-10)
