"""The classification head."""

import torch

from stages.network.head import Head


def test_head_returns_log_probabilities():
    head = Head(128, 62)
    assert (head.dropout.p, head.linear.in_features, head.linear.out_features) == (0.5, 128, 62)
    torch.testing.assert_close(head(torch.randn(4, 128)).exp().sum(1), torch.ones(4))
