"""Embedding images in evaluation mode."""

import torch

from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.network.inference import embed_images

CPU = torch.device("cpu")


def random_images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)


def test_batch_size_changes_embeddings_by_rounding_only():
    network = EmbeddingNet(1, 28, 32)
    images = random_images(10)
    whole = embed_images(network, [images], device=CPU)
    single = embed_images(network, images.split(1), device=CPU)
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-6)


def test_embedding_does_not_change_network_or_mode():
    network = EmbeddingNet(1, 28, 32).train()
    before = state_digest(network.state_dict())
    embed_images(network, [random_images(8)], device=CPU)
    assert network.training
    assert state_digest(network.state_dict()) == before
