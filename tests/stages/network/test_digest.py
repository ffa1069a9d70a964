"""The digest of a network's tensors."""

import torch

from stages.network.digest import TensorBytes, state_digest, streamed_digest, tensor_bytes


def test_digest_depends_on_values_names_and_shapes_but_not_on_layout():
    weights = torch.randn(2, 3, 4, 4)
    reference = state_digest({"a": weights, "b": torch.zeros(1)})
    channels_last = weights.contiguous(memory_format=torch.channels_last)
    assert state_digest({"b": torch.zeros(1), "a": channels_last}) == reference
    assert state_digest({"c": weights, "b": torch.zeros(1)}) != reference
    assert state_digest({"a": weights, "b": torch.full((1,), 1e-30)}) != reference
    assert state_digest({"a": weights.view(6, 4, 4), "b": torch.zeros(1)}) != reference


def test_streamed_digest_equals_that_of_tensors():
    tensors = {"b": torch.randn(5, 3), "a": torch.tensor(7), "c": torch.empty(0, 2)}
    tensors["d"] = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    streamed = {name: tensor_bytes(value) for name, value in tensors.items()}
    content = tensors["b"].numpy().tobytes()
    blocks = [content[:7], content[7:60]]
    streamed["b"] = TensorBytes(torch.float32, (5, 3), lambda: blocks)
    assert streamed_digest(streamed) == state_digest(tensors)
    streamed["b"] = TensorBytes(torch.float32, (3, 5), lambda: blocks)
    assert streamed_digest(streamed) != state_digest(tensors)
