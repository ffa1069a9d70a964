"""The digest of a network's tensors."""

import torch

from stages.network.digest import state_digest


def test_digest_depends_on_values_names_and_shapes_but_not_on_layout():
    weights = torch.randn(2, 3, 4, 4)
    reference = state_digest({"a": weights, "b": torch.zeros(1)})
    channels_last = weights.contiguous(memory_format=torch.channels_last)
    assert state_digest({"b": torch.zeros(1), "a": channels_last}) == reference
    assert state_digest({"c": weights, "b": torch.zeros(1)}) != reference
    assert state_digest({"a": weights, "b": torch.full((1,), 1e-30)}) != reference
    assert state_digest({"a": weights.view(6, 4, 4), "b": torch.zeros(1)}) != reference
